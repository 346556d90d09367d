"""The operator on a real API server dies at any of its calls, or hears and reaches only half: the end is the same."""

from collections.abc import Iterator

import pytest

from cluster import Cluster, running_cluster, simulated
from node_agent import NodeShape
from real_history import in_trouble, killed_anywhere
from simulated_stages import SimulatedStages
from team_runs import make_team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STAGES = SimulatedStages(seconds=0.3)
SEEDS = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(NodeShape(nodes=4, gpus=1000), simulated(STAGES)) as running:
        make_team(running)
        yield running


def test_killed_before_or_after_any_call_it_comes_to_the_same_end(cluster: Cluster) -> None:
    histories = killed_anywhere(cluster)
    killed = sum(history.lives > 1 for history in histories)
    assert killed >= 0.9 * len(histories)  # calls of two tasks come in any order, so a history may have a few less


def test_whatever_goes_wrong_around_it_every_stage_is_done_once(cluster: Cluster) -> None:
    histories = in_trouble(cluster, STAGES, SEEDS)
    assert sum(history.lives for history in histories) > 2 * SEEDS

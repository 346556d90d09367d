"""One cluster for all tests of this folder."""

from collections.abc import Iterator

import pytest

from cluster import Cluster, running_cluster
from node_agent import NodeShape


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster(NodeShape()) as running:
        yield running

"""A probe of three workers, one of which stands still and one is killed: little is made again. All stages are real."""

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from chat_server import Answer, chat_server
from cluster_run import BUCKET, ClusterRun, small_manifest, without_operator
from control_plane import wait_for
from fault_proxy import fault_proxy
from operator_process import operator_process
from process_pods import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
ROWS, CHUNK_ROWS, WORKERS = 40, 1, 3
OPEN = 2  # chunks that a worker holds at once: the one it makes, and the one it has read ahead


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRun]:
    with (
        without_operator(tmp_path_factory.mktemp("lost-worker"), sft=40, rl=ROWS, heldout=20) as found,
        operator_process(found.cluster.plane),
    ):
        yield found


def test_a_killed_worker_and_one_that_stands_still_cost_only_their_open_chunks(place: ClusterRun) -> None:
    always_one = Answer(text="<think>The first says four, right.</think><answer>1</answer>")
    with (
        chat_server(lambda _request, _number: always_one) as teacher,
        fault_proxy(place.cluster.s3.port) as (endpoint, seen),
    ):
        run = small_manifest()
        run["metadata"]["name"] = "lost"
        spec = run["spec"]
        spec["store"] |= {"uri": f"s3://{BUCKET}/lost", "endpoint": endpoint}
        spec["distill"]["teacher"]["baseUrl"] = teacher.base_url
        spec["sft"] |= {"maxSteps": 2, "processes": 1}
        spec["probe"] |= {"chunkRows": CHUNK_ROWS, "workers": WORKERS}
        spec["curate"]["enabled"] = spec["rl"]["enabled"] = spec["evaluate"]["enabled"] = False
        place.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(run))

        def chunks() -> Counter[str]:
            names = [
                re.search(r"/probe/.*(?<!/claims)/chunks/(part-\d+).parquet/[0-9a-f]{16}$", path)
                for path in list(seen.written)
            ]
            return Counter(name[1] for name in names if name)

        wait_for("some chunks are committed", lambda: len(chunks()) >= 3, 300)
        place.cluster.agent.signal("default", "lost-probe-a1-worker-1", signal.SIGSTOP)
        there = set(chunks())
        wait_for("the others go on", lambda: len(chunks()) >= len(there) + 6, 300)
        numbers = [int(name.removeprefix("part-")) for name in set(chunks()) - there]
        assert sum(number % WORKERS == 2 for number in numbers) <= 1  # of the stopped: it may have been sending one
        place.cluster.agent.signal("default", "lost-probe-a1-worker-0", signal.SIGKILL)
        place.cluster.agent.signal("default", "lost-probe-a1-worker-1", signal.SIGCONT)
        before = set(chunks())
        place.wait_complete("lost", 300)
        after = chunks()
    assert len(before) < ROWS // CHUNK_ROWS == len(after)
    again = {name for name, count in after.items() if count > 1}
    print(f"{len(before)} chunks were there when it was killed; {len(again)} of {len(after)} were made twice")
    assert len(again) <= WORKERS * OPEN  # when little is left, whoever has nothing makes what others hold as well
    assert place.stage("lost", "probe")["retries"] == {"Crash": 1}
    assert place.table("probe", "entropies", "lost").num_rows == ROWS

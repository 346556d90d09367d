"""How soon a new operator has looked at everything, on a real API server full of runs.

    python bench/restart.py [--finished 5000] [--active 500]

The active runs are at their first stage, whose pods run on; the finished ones carry the status that a whole history
leaves. Printed: seconds from the start of the process until every run was looked at, beside what a plain list of the
same objects takes, and the operator's peak memory.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cluster")]

from build_egtrun import drive, egtrun, status_of
from cluster import Cluster, running_cluster, simulated
from control_plane import wait_for
from fake_cluster import FakeCluster
from node_agent import NodeShape
from node_api import NodeApi
from operator_process import operator_process, peak_mib
from simulated_stages import SimulatedStages
from team_runs import JOBS, PODS, RUNS, make_team

AT_ONCE = 32
BAR_SECONDS = 15.0


def finished_status() -> dict[str, Any]:
    """What a whole history leaves in the status of a run."""
    cluster = FakeCluster()
    cluster.apply(egtrun())
    drive(cluster)
    return status_of(cluster)


async def make_runs(cluster: Cluster, prefix: str, count: int, status: dict[str, Any] | None) -> None:
    """So many runs are there, with that status."""
    api, gate = NodeApi(cluster.kubeconfig, cluster.plane.folder), asyncio.Semaphore(AT_ONCE)

    async def make(number: int) -> None:
        body = egtrun(store={"uri": f"s3://bucket/{prefix}-{number}"})
        body["metadata"]["name"] = f"{prefix}-{number}"
        async with gate:
            await api.call("POST", RUNS, body)
            if status is not None:
                path = f"{RUNS}/{body['metadata']['name']}/status"
                await api.call("PATCH", path, {"status": status}, "application/merge-patch+json")

    await asyncio.gather(*(make(number) for number in range(count)))
    await api.session.close()


async def list_seconds(cluster: Cluster) -> float:
    """What it takes to list all that the operator has to know, page by page, and do nothing with it."""
    api = NodeApi(cluster.kubeconfig, cluster.plane.folder)
    began = time.monotonic()
    for path in (JOBS, PODS, RUNS):
        more = ""
        while True:
            page = await api.call("GET", f"{path}?limit=500{more}")
            if not page["metadata"].get("continue"):
                break
            more = f"&continue={page['metadata']['continue']}"
    seconds = time.monotonic() - began
    await api.session.close()
    return seconds


def main() -> None:
    """Print the figures; exit 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--finished", type=int, default=5000)
    parser.add_argument("--active", type=int, default=500)
    given = parser.parse_args()
    count = given.finished + given.active
    with running_cluster(NodeShape(nodes=4, gpus=10_000), simulated(SimulatedStages(seconds=3600.0))) as cluster:
        make_team(cluster)
        asyncio.run(make_runs(cluster, "active", given.active, None))
        with operator_process(cluster.plane, progress_seconds="600", resync_seconds="3600") as first:
            wait_for("the runs are active", lambda: first.figure("egt_runs", phase="Running") == given.active, 600)
        asyncio.run(make_runs(cluster, "finished", given.finished, finished_status()))
        listed = asyncio.run(list_seconds(cluster))
        began = time.monotonic()
        with operator_process(cluster.plane, progress_seconds="600", resync_seconds="3600") as second:
            wait_for("every run was looked at", lambda: second.figure("egt_runs") == count, 600)
            seconds, memory = time.monotonic() - began, peak_mib(second.process.pid)
    print(f"{given.finished} finished and {given.active} active runs: all looked at after {seconds:.1f} s "
          f"(bar {BAR_SECONDS:.0f}), a bare list {listed:.1f} s, ratio {seconds / listed:.1f}")  # fmt: skip
    print(f"peak memory {memory:.0f} MiB")
    sys.exit(0 if seconds <= BAR_SECONDS else 1)


if __name__ == "__main__":
    main()

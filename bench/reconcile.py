"""The operator against a bare script that makes the same PyTorchJobs, on one real API server with simulated pods.

    python bench/reconcile.py [--runs 1000] [--seconds 200] [--minutes 6]

Every run is five stages whose pods end at once. The script creates each job when the one before has succeeded, and does
nothing else: no status, no attempts, no events. Printed: jobs a minute of both, CPU seconds of the operator beside
training-operator's own, peak memory, duplicates, lost runs; and the gap from the end of a stage's pod to its next job,
seen by a watcher of its own. With --minutes only that gap is measured, of the operator with all runs at work.
"""

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cluster")]

from build_egtrun import egtrun
from cluster import Cluster, running_cluster, simulated
from egt_operator.render import RUN_LABEL, STAGE_LABEL
from node_agent import NodeShape
from node_api import NodeApi
from operator_process import RunningOperator, cpu_seconds, operator_process, peak_mib
from simulated_stages import SimulatedStages
from team_runs import JOBS, PODS, RUNS, make_team

STAGES = ("prepare", "sft", "probe", "curate", "rl")
AT_ONCE = 32  # requests of this program, as kubectl of many users
BURST_SECONDS = 60.0  # what began at once has been noted down by then


def pid_of(program: str) -> int:
    """The newest process of a program."""
    found = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().split(b"\0")[0].endswith(program.encode())
    ]
    return max(found)


class Watcher:
    """When each stage's pod ended and its job appeared, by this process's clock; of runs whose name begins so."""

    def __init__(self, prefix: str = "run-") -> None:
        self.prefix = prefix
        self.ended: dict[tuple[str, str], float] = {}
        self.added: dict[tuple[str, str], float] = {}
        self.jobs: set[str] = set()

    @contextlib.asynccontextmanager
    async def watching(self, api: NodeApi, job: Callable[[str, Any], None] | None = None) -> AsyncIterator[None]:
        """Pods and jobs are watched meanwhile."""
        watches = [
            asyncio.create_task(api.watch(PODS, self.pod)),
            asyncio.create_task(api.watch(JOBS, job or self.job)),
        ]
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()

    def pod(self, event: str, pod: Any) -> None:
        if event not in ("ADDED", "MODIFIED") or (pod.get("status") or {}).get("phase") != "Succeeded":
            return
        labels = pod["metadata"]["labels"]
        self.ended.setdefault((labels[RUN_LABEL], labels[STAGE_LABEL]), time.monotonic())

    def job(self, event: str, job: Any) -> None:
        labels = job["metadata"]["labels"] if event == "ADDED" else {}
        if labels.get(RUN_LABEL, "").startswith(self.prefix):
            self.added.setdefault((labels[RUN_LABEL], labels[STAGE_LABEL]), time.monotonic())
            self.jobs.add(job["metadata"]["uid"])

    def gaps(self, since: float = 0.0) -> list[float]:
        """Seconds from the end of a stage's pod to the next stage's job, of pods that ended after ``since``."""
        return sorted(
            max(0.0, self.added[run, after] - ended)
            for before, after in pairwise(STAGES)
            for (run, stage), ended in self.ended.items()
            if stage == before and (run, after) in self.added and ended > since
        )

    def steady(self, count: int) -> float:
        """Since when so many runs are at work and their common beginning is over; not yet: infinity."""
        begun = [added for (_, stage), added in self.added.items() if stage == STAGES[0]]
        return max(begun) + BURST_SECONDS if len(begun) >= count else math.inf


async def create_all(api: NodeApi, path: str, bodies: list[dict[str, Any]]) -> None:
    """Create objects, so many at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def create(body: dict[str, Any]) -> None:
        async with gate:
            await api.call("POST", path, body)

    await asyncio.gather(*(create(body) for body in bodies))


async def with_operator(
    cluster: Cluster, operator: RunningOperator, count: int, minutes: float
) -> tuple[float, Watcher]:
    """Seconds until every run is complete, by the operator's own count; the API server's word is asked at the end.

    Or until all have been at work for so many minutes.
    """
    api, watcher = NodeApi(cluster.kubeconfig, cluster.plane.folder), Watcher()
    bodies = []
    for number in range(count):
        body = egtrun(
            store={"uri": f"s3://bucket/run-{number}"}, distill={"enabled": False}, evaluate={"enabled": False}
        )
        body["metadata"]["name"] = f"run-{number}"
        bodies.append(body)
    async with watcher.watching(api):
        began = time.monotonic()
        await create_all(api, RUNS, bodies)
        while await asyncio.to_thread(ended, operator) < count:  # in a thread: the watcher's clock must not wait
            await asyncio.sleep(1.0)
            if time.monotonic() > watcher.steady(count) + 60 * minutes:
                break
        seconds = time.monotonic() - began
    phases = [(run.get("status") or {}).get("phase") for run in (await api.call("GET", RUNS))["items"]]
    await api.session.close()
    complete, failed, jobs = phases.count("Complete"), phases.count("Failed"), len(watcher.jobs)
    print(f"runs {count}, complete {complete}, failed {failed}, jobs {jobs} of {5 * count}, "
          f"twice {jobs - len(watcher.added)}", flush=True)  # fmt: skip
    return seconds, watcher


def ended(operator: RunningOperator) -> float:
    """Runs that have ended, by the operator's own count."""
    return sum(operator.figure("egt_runs", phase=phase) for phase in ("Complete", "Failed"))


def bare_job(template: dict[str, Any], chain: int, stage: int) -> dict[str, Any]:
    """The same job as one of the operator's, in the name of a chain of the script."""
    body: dict[str, Any] = json.loads(json.dumps(template))
    labels = {**body["metadata"]["labels"], RUN_LABEL: f"bare-{chain}"}
    body["metadata"] = {"name": f"bare-{chain}-{stage}", "labels": labels}
    for replicas in body["spec"]["pytorchReplicaSpecs"].values():
        replicas["template"]["metadata"]["labels"][RUN_LABEL] = f"bare-{chain}"
    return body


async def with_script(cluster: Cluster, templates: list[dict[str, Any]], count: int) -> tuple[float, Watcher]:
    """Seconds until a script that does nothing else has brought as many chains to their end."""
    api, watcher = NodeApi(cluster.kubeconfig, cluster.plane.folder), Watcher("bare-")
    done = asyncio.Event()
    ended = 0
    tasks: set[asyncio.Task[Any]] = set()
    seen: set[str] = set()

    def see(event: str, found: Any) -> None:
        nonlocal ended
        watcher.job(event, found)
        if event not in ("ADDED", "MODIFIED") or not found["metadata"]["name"].startswith("bare-"):
            return
        name = found["metadata"]["name"]
        conditions = (found.get("status") or {}).get("conditions") or ()
        if name in seen or not any(c["type"] == "Succeeded" and c["status"] == "True" for c in conditions):
            return
        seen.add(name)
        _, chain, stage = name.split("-")
        if int(stage) + 1 < len(STAGES):
            following = bare_job(templates[int(stage) + 1], int(chain), int(stage) + 1)
            task = asyncio.ensure_future(api.call("POST", JOBS, following))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return
        ended += 1
        if ended == count:
            done.set()

    async with watcher.watching(api, see):
        began = time.monotonic()
        await create_all(api, JOBS, [bare_job(templates[0], chain, 0) for chain in range(count)])
        await done.wait()
        seconds = time.monotonic() - began
    await api.session.close()
    return seconds, watcher


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long a pod runs, on average")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop when all runs were at work so long")
    given = parser.parse_args()
    count, stages = given.runs, SimulatedStages(given.seconds, spread=0.9)
    with running_cluster(NodeShape(nodes=4, gpus=10_000), simulated(stages)) as cluster:
        make_team(cluster)
        trainer = pid_of("training-operator.v1")
        with operator_process(cluster.plane, progress_seconds="60", resync_seconds="300") as operator:
            pid = operator.process.pid
            before, trained = cpu_seconds(pid), cpu_seconds(trainer)
            seconds, watcher = asyncio.run(with_operator(cluster, operator, count, given.minutes))
            ours, theirs = cpu_seconds(pid) - before, cpu_seconds(trainer) - trained
            jobs = len(watcher.jobs)
            print(f"CPU ms a stage: operator {1000 * ours / jobs:.1f}, training-operator "
                  f"{1000 * theirs / jobs:.1f}, ratio {ours / theirs:.1f} (bar 3)")  # fmt: skip
            print(f"peak memory {peak_mib(pid):.0f} MiB (bar 150)")
            print_gaps("operator", watcher, count)
        if given.minutes < math.inf:
            return
        done = json.loads(cluster.kubectl("get", "pytorchjobs", "-n", "team", "-l", f"{RUN_LABEL}=run-0", "-o", "json"))
        by_stage = {job["metadata"]["labels"][STAGE_LABEL]: job for job in done["items"]}
        templates = [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": by_stage[s]["metadata"],
                      "spec": by_stage[s]["spec"]} for s in STAGES]  # fmt: skip
        bare, bare_watcher = asyncio.run(with_script(cluster, templates, count))
    rate, bare_rate = 300 * count / seconds, 300 * count / bare
    print(f"jobs a minute: operator {rate:.0f}, script {bare_rate:.0f}, ratio {rate / bare_rate:.2f} (bar 0.8)")
    print_gaps("script", bare_watcher, count)


def print_gaps(who: str, watcher: Watcher, count: int) -> None:
    """Of the whole time, and of that in which all runs were at work."""
    for when, gaps in (("", watcher.gaps()), (", with all runs at work", watcher.gaps(watcher.steady(count)))):
        what = f"{who}: end of a pod to the next job{when}, {len(gaps)} times"
        if len(gaps) < 100:
            print(f"{what}: too few for a 99th percentile")
            continue
        p50, p99 = percentiles(gaps)
        bars = (" (bar 100)", " (bar 500)") if who == "operator" else ("", "")
        print(f"{what}: p50 {p50:.0f} ms{bars[0]}, p99 {p99:.0f} ms{bars[1]}", flush=True)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile of sorted seconds, in milliseconds."""
    return 1000 * statistics.median(seconds), 1000 * seconds[int(len(seconds) * 0.99)]


if __name__ == "__main__":
    main()

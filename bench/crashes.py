"""Histories in which the operator dies, or anything between it and the API server goes wrong: in memory and for real.

    python bench/crashes.py [--memory 2000] [--real 200]

Each ends in the same state, with one PyTorchJob for each stage and attempt, or this program ends with its name.
Printed: how many there were of each kind, and how many lives the operator had in them.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cluster")]

import fake_history
from cluster import running_cluster, simulated
from node_agent import NodeShape
from real_history import in_trouble, killed_anywhere
from simulated_stages import SimulatedStages
from team_runs import make_team


def in_memory(count: int) -> None:
    """So many seeds, in every second of which stages fail too."""
    began = time.monotonic()
    for seed in track(range(count), "in memory"):
        history = fake_history.History(seed, failures=bool(seed % 2))
        asyncio.run(history.play())
        history.check()
    print(f"in memory: {count} histories, each ended as it should ({time.monotonic() - began:.0f} s)")


def main() -> None:
    """Play all, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, default=2000)
    parser.add_argument("--real", type=int, default=200)
    given = parser.parse_args()
    in_memory(given.memory)
    stages = SimulatedStages(seconds=0.3)
    with running_cluster(NodeShape(nodes=4, gpus=1000), simulated(stages)) as cluster:
        make_team(cluster)
        killed = killed_anywhere(cluster)
        print(f"real, killed at a call: 2N = {len(killed)} histories, killed in {sum(h.lives > 1 for h in killed)} of "
              "them, each ended as the unbroken one")  # fmt: skip
        troubled = in_trouble(cluster, stages, given.real)
        lives, calls = (sum(getattr(history, what) for history in troubled) for what in ("lives", "calls"))
        print(f"real, in trouble: {given.real} histories, {calls} calls, {lives} lives of the operator, each ended as "
              "it should")  # fmt: skip


if __name__ == "__main__":
    main()

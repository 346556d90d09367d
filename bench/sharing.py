"""How soon a probe of many workers is done, some slow and two lost on the way, by the real rule on a made-up clock.

    python bench/sharing.py [--rows 100000] [--seeds 5]

32 workers, every tenth at 0.6 of the others' speed, two lost for a minute and a start of three. Printed: the time until
every chunk is committed as a ratio to the ideal, in which work could be cut anywhere; beside it static shards, in which
a worker makes its own share and nobody helps, as torch's DistributedSampler cuts data.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from egt_pipeline.chunks import Board, Chunk, share
from simulated_workers import Rule, Simulation, fleet

BAR = 1.05


def static(chunks: Sequence[Chunk], number: int, count: int, board: Board) -> Iterator[Chunk]:
    """A worker's own chunks that it has not made before it was lost."""
    return (chunk for chunk in chunks[number::count] if chunk.name not in board.committed())


def ratio(rule: Rule, rows: int, chunk_rows: int, seed: int) -> tuple[float, int]:
    """Makespan to ideal, and how many chunks were made more than once."""
    found = Simulation(fleet(), rows=rows, chunk_rows=chunk_rows, seed=seed, rule=rule).run()
    return found.makespan_seconds / found.ideal_seconds, sum(found.made.values()) - len(found.made)


def main() -> None:
    """Print a line for each rule and size of chunks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    rules: list[tuple[str, Rule, int]] = [("ours", share, rows) for rows in (64, 128, 256)]
    lines = []
    for name, rule, chunk_rows in track([*rules, ("static shards", static, 128)], "plays"):
        found = [ratio(rule, given.rows, chunk_rows, seed) for seed in range(given.seeds)]
        ratios, twice = [one for one, _ in found], [one for _, one in found]
        lines.append(f"{name}, chunks of {chunk_rows}: makespan / ideal {min(ratios):.3f} to {max(ratios):.3f} "
                     f"(bar {BAR}), made twice at most {max(twice)} of {-(-given.rows // chunk_rows)}")  # fmt: skip
    print(f"{len(fleet())} workers, {given.rows:,} rows, seeds 0 to {given.seeds - 1}", *lines, sep="\n")


if __name__ == "__main__":
    main()

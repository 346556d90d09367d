"""Select the lowest 15 % of 10 million samples: ours against polars, duckdb, pyarrow and pandas, in one run.

    python bench/selection.py [--rows 10000000] [--repeat 3]

Two jobs, each contender in a process of its own, all outputs compared:

    kept    the kept samples in the total order (answer entropy, sentence entropy, id), status ok only, as zstd Parquet
    table   every sample in input order with rank, score and decision, as zstd Parquet (what the stage publishes)

CPU seconds and peak memory are the child's own, imports included; ours also checks every row. (The file is not called
select.py: that would shadow the standard module of that name.)
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_A_GROUP = 250_000
LIMIT_MB = 450
JOBS = {
    "kept": ("ours", "polars", "polars_sort", "duckdb", "duckdb_sort", "pyarrow", "pyarrow_sort", "pandas"),
    "table": ("ours", "polars", "duckdb", "pyarrow", "pandas"),
}


def generate(path: Path, rows: int) -> None:
    """A table as the probe leaves it; 30 % of the answer entropies are rounded to 1e-3, so that many tie."""
    draw = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, ROWS_A_GROUP):
        size = min(ROWS_A_GROUP, rows - start)
        answer = draw.gamma(2, 0.15, size)
        rounded = draw.random(size) < 0.3
        answer[rounded] = np.round(answer[rounded], 3)
        columns = {
            "row": np.arange(start, start + size),
            "sample_id": [f"sample-{number:016x}" for number in draw.integers(0, 2**63, size)],
            "generation": np.zeros(size, np.int32),
            "answer_entropy_nats": answer,
            "sentence_entropy_nats": draw.gamma(3, 0.1, size),
            "predicted": draw.integers(1, 3, size).astype(np.int8),
            "status": np.where(draw.random(size) < 0.002, "no_answer", "ok"),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


class Cost(NamedTuple):
    """What one process took."""

    cpu_seconds: float
    peak_mb: float


def measure(name: str, source: Path, target: Path) -> Cost:
    """The CPU seconds (user and system) and the peak memory of one contender in a fresh process."""
    contenders = str(Path(__file__).with_name("selection_contenders.py"))
    # Without it every process would compile its imports anew, ours and theirs.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    arguments = [sys.executable, contenders, name, str(source), str(target)]
    printed = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout
    cpu_seconds, peak_mb = map(float, printed.split())
    return Cost(cpu_seconds, peak_mb)


def outcome(job: str, target: Path) -> str:
    """A hash of the kept ids in their order."""
    if job == "kept":
        ids = pq.read_table(target, columns=["sample_id"])["sample_id"]
    else:
        table = pq.read_table(target, columns=["sample_id", "rank"]).drop_null()
        ids = table.sort_by("rank")["sample_id"]
    return hashlib.sha256("\n".join(ids.to_pylist()).encode()).hexdigest()[:12]


def report(job: str, costs: dict[str, Cost]) -> bool:
    """Prints one job's table; True if ours is on the front of both and within the limit."""
    ours = costs["ours"]
    print(f"\n{job:14s} {'CPU s':>8s} {'ratio':>6s} {'peak MB':>8s} {'ratio':>6s}")
    for name, cost in sorted(costs.items(), key=lambda item: item[1]):
        ratios = cost.cpu_seconds / ours.cpu_seconds, cost.peak_mb / ours.peak_mb
        print(f"{name:14s} {cost.cpu_seconds:8.2f} {ratios[0]:6.2f} {cost.peak_mb:8.0f} {ratios[1]:6.2f}")
    better = [name for name, cost in costs.items() if cost != ours and cost[0] <= ours[0] and cost[1] <= ours[1]]
    print(f"better in both: {', '.join(better) or 'nobody'}; ours {ours.peak_mb:.0f} of {LIMIT_MB} MB")
    return not better and ours.peak_mb <= LIMIT_MB


def main() -> int:
    """0 if ours holds on both jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "entropies.parquet"), Path(folder, "out.parquet")
        generate(source, options.rows)
        for job, names in JOBS.items():
            measured: dict[str, list[Cost]] = {name: [] for name in names}
            found: dict[str, str] = {}
            for _ in range(options.repeat):
                for name in names:
                    measured[name].append(measure(f"{name}_{job}", source, target))
                    found[name] = outcome(job, target)
            if len(set(found.values())) > 1:
                raise SystemExit(f"{job}: the ordered ids differ: {found}")
            costs = {name: Cost(*map(statistics.median, zip(*each, strict=True))) for name, each in measured.items()}
            holds &= report(job, costs)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

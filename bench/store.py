"""Put and get through the store with all its checks, against plain boto3, on a real S3 server in the same run.

    python bench/store.py

    large   one file of 1 GiB            boto3: upload_file and download_file as they come
    small   2,000 files of 4 KiB         boto3: the same calls from 16 threads over one client

Ours and boto3 take turns at being first, so that noise of the machine meets both; figures are medians. CPU seconds and
peak memory are this process's own, the server's are not in them. Files lie in memory if it has room. Ours hashes every
byte in both directions (SHA-256), sends a checksum with every body and publishes with a conditional create; boto3 sends
a CRC32 and checks nothing of a file that came in several parts.
"""

import filecmp
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import boto3
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest, Producer, StoreRef
from egt_pipeline.store import open_store
from s3_server import BUCKET, S3Server, s3_server

LARGE_BYTES = 2**30
SMALL_FILES, SMALL_BYTES = 2_000, 4 * 2**10
ROUNDS = {"large": 2, "small": 3}
PEER_THREADS = 16
BAR = 1.0  # boto3's wall seconds by ours
MEMORY = Path("/dev/shm")
ROOM_BYTES = 5 * LARGE_BYTES  # the file, its parts and the object on the server, what comes back, and some air


class Cost(NamedTuple):
    """What one transfer took."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def timed(work: Callable[[], object]) -> Cost:
    """Wall and CPU seconds (user and system, all threads) of ``work``, and the process's peak memory meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, see proc(5)
    started, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Cost(seconds, cpu_seconds, int(status["VmHWM"].split()[0]) / 1024)


def generate(folder: Path) -> dict[str, Path]:
    """The two directories that are sent: random bytes, so nothing can be saved by compression or holes."""
    large, small = folder / "large", folder / "small"
    large.mkdir()
    small.mkdir()
    with (large / "weights").open("wb") as stream:
        for _ in range(LARGE_BYTES // 2**24):
            stream.write(os.urandom(2**24))
    for number in range(SMALL_FILES):
        (small / f"file-{number:04d}").write_bytes(os.urandom(SMALL_BYTES))
    return {"large": large, "small": small}


def ours(server: S3Server, source: Path, target: Path) -> tuple[Cost, Cost]:
    """Put and get by ``publish`` and ``fetch``."""
    store = open_store(StoreRef(uri=f"s3://{BUCKET}/ours", endpoint=server.endpoint))
    now = datetime.now(UTC)
    producer = Producer(run="bench", attempt=1, host="", started=now, finished=now, versions={})
    draft = Manifest(stage=StageName.SFT, digest=secrets.token_hex(8), revision=1, recipe={}, inputs={}, files=(),
                     metrics={}, producer=producer)  # fmt: skip
    put = timed(lambda: store.publish(source, draft))
    published = store.require(draft.stage, draft.digest)
    return put, timed(lambda: store.fetch(published, target))


def plain(server: S3Server, source: Path, target: Path) -> tuple[Cost, Cost]:
    """Put and get by boto3's own transfers; several files go over 16 threads."""
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1",
                          config=Config(max_pool_connections=PEER_THREADS))  # fmt: skip
    names = sorted(path.name for path in source.iterdir())
    target.mkdir()
    with ThreadPoolExecutor(PEER_THREADS) as pool:
        put = timed(lambda: list(pool.map(lambda n: client.upload_file(str(source / n), BUCKET, f"plain/{n}"), names)))
        get = timed(lambda: list(pool.map(lambda n: client.download_file(BUCKET, f"plain/{n}", target / n), names)))
    return put, get


def same_files(source: Path, target: Path) -> bool:
    """True if each file of ``source`` lies somewhere below ``target`` with the same bytes."""
    arrived = {path.name: path for path in target.rglob("*") if path.is_file()}
    return all(filecmp.cmp(path, arrived[path.name], shallow=False) for path in source.iterdir())


def one_round(server: S3Server, source: Path, folder: Path, number: int) -> dict[str, tuple[Cost, Cost]]:
    """Both contenders once, each from an empty bucket to an empty directory."""
    costs = {}
    contenders = [("ours", ours), ("boto3", plain)]
    for name, contender in contenders if number % 2 else reversed(contenders):
        target = folder / "arrived"
        costs[name] = contender(server, source, target)
        if not same_files(source, target):
            raise SystemExit(f"{name}: what came back is not what was sent")
        shutil.rmtree(target)
        for left in (server.folder / BUCKET).iterdir():
            shutil.rmtree(left)
    return costs


def report(job: str, rounds: list[dict[str, tuple[Cost, Cost]]]) -> bool:
    """Prints the medians of one job; True if ours is at the bar in both directions."""
    holds = True
    for index, direction in enumerate(("put", "get")):
        mine, theirs = (
            Cost(*map(statistics.median, zip(*(each[name][index] for each in rounds), strict=True)))
            for name in ("ours", "boto3")
        )
        ratio = statistics.median(each["boto3"][index].seconds / each["ours"][index].seconds for each in rounds)
        holds &= ratio >= BAR
        figures = "".join(
            f"{name:>8} {cost.seconds:6.2f} s {cost.cpu_seconds:6.2f} CPU s {cost.peak_mib:4.0f} MiB"
            for name, cost in (("ours", mine), ("boto3", theirs))
        )
        cpu = theirs.cpu_seconds / mine.cpu_seconds
        print(f"{job:6} {direction} {figures}   speed {ratio:4.2f}x   CPU {cpu:4.2f}x", flush=True)
    return holds


def main() -> int:
    """0 if ours is at least as fast as plain boto3 in every row."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        tempfile.tempdir = str(MEMORY)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, files in {tempfile.gettempdir()}")
    holds = True
    with s3_server() as server, tempfile.TemporaryDirectory(prefix="egt-bench-") as name:
        for job, source in generate(Path(name)).items():
            holds &= report(job, [one_round(server, source, Path(name), number) for number in range(ROUNDS[job])])
    print(f"bar: {BAR:.1f}x in every row: {'met' if holds else 'missed'}; load {os.getloadavg()[0]:.1f} at the end")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

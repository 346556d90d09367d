"""kill -9 at twenty seeded random moments of a run of all stages: what comes out is what an unbroken run gives."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from small_run import EGT, Place, digits_place

KILLS = 20
SEED = 7


def start(place: Place) -> subprocess.Popen[bytes]:
    command = [EGT, "local", "run", str(place.manifest), "-o", "json"]
    with (place.folder / "run.log").open("ab") as log:
        return subprocess.Popen(command, cwd=place.folder, stdout=log, stderr=log, start_new_session=True)


def stage_groups(place: Place) -> set[int]:
    """Process groups of the stages that run for this place, each started in a group of its own."""
    groups = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"egt_pipeline" in (said := command.read_bytes()) and str(place.folder).encode() in said:
                groups.add(os.getpgid(int(command.parent.name)))
    return groups


def published(place: Place) -> dict[str, str]:
    """Stage and digest of the manifest of everything in the store."""
    manifests = (place.folder / "store" / "artifacts").glob("*/*/manifest.json")
    return {path.parent.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests}


def results(place: Place) -> dict[str, Any]:
    def column(stage: str, table: str, *names: str) -> list[Any]:
        return pq.read_table(place.artifact(stage) / table, columns=list(names)).to_pylist()

    return {
        "entropies": (place.artifact("probe") / "entropies.parquet").read_bytes(),
        "selection": (place.artifact("curate") / "selection.parquet").read_bytes(),
        "losses": column("sft", "losses.parquet", "step", "loss"),
        "order": column("rl", "order.parquet", "epoch", "step", "position", "sample_id"),
    }


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    with digits_place(tmp_path) as place:
        began = time.monotonic()
        assert start(place).wait() == 0
        duration = time.monotonic() - began
        unbroken = results(place)
        shutil.rmtree(place.folder / "store")
        moments = random.Random(SEED)
        done = 0
        seen: dict[str, str] = {}
        while done < KILLS:
            process = start(place)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, duration / 2))
            if process.poll() is None:
                # Every second time nothing of the run gets to say a word, else only who drives it.
                for group in {process.pid, *(stage_groups(place) if done % 2 else ())}:
                    os.killpg(group, signal.SIGKILL)
                process.wait()
                done += 1
                print(f"kill {done}: {sorted(published(place))}", flush=True)
            now = published(place)
            assert all(now[stage] == mark for stage, mark in seen.items()), "published work was done again"
            seen = now
            if len(now) == len(unbroken_stages(place)):
                assert results(place) == unbroken
                shutil.rmtree(place.folder / "store")
                seen = {}
        assert start(place).wait() == 0
        assert results(place) == unbroken


def unbroken_stages(place: Place) -> list[str]:
    lines = json.loads(place.egt("plan", str(place.manifest), "-o", "json", check=False).stdout)
    return [line["name"] for line in lines if line["action"] != "disabled"]

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
    log = (place.folder / "run.log").open("ab")
    return subprocess.Popen([EGT, "local", "run", str(place.manifest), "-o", "json"], cwd=place.folder,
                            stdout=log, stderr=log, start_new_session=True)  # fmt: skip


def published(place: Place) -> dict[str, str]:
    """Stage and time of publication of everything in the store."""
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
        done = before = 0
        seen: dict[str, str] = {}
        while done < KILLS:
            process = start(place)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, duration / 2))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                done += 1
                print(f"kill {done}: {sorted(published(place))}", flush=True)
            now = published(place)
            assert all(now[stage] == mark for stage, mark in seen.items()), "published work was done again"
            seen = now
            if len(now) == len(unbroken_stages(place)):
                assert results(place) == unbroken
                shutil.rmtree(place.folder / "store")
                seen, before = {}, before + 1
        assert start(place).wait() == 0
        assert results(place) == unbroken


def unbroken_stages(place: Place) -> list[str]:
    lines = json.loads(place.egt("plan", str(place.manifest), "-o", "json", check=False).stdout)
    return [line["name"] for line in lines if line["action"] != "disabled"]

"""A small run of the whole method in a folder of its own: every stage real, only the sizes are small."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

EGT = str(Path(sys.executable).with_name("egt"))
STAGES = ["prepare", "distill", "sft", "probe", "curate", "rl", "evaluate"]


@dataclass(frozen=True)
class Place:
    """Where the small run lives."""

    folder: Path
    manifest: Path

    def egt(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([EGT, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def artifact(self, stage: str) -> Path:
        digests = {line["name"]: line["digest"] for line in self.plan()}
        return self.folder / "store" / "artifacts" / stage / digests[stage]

    def plan(self, manifest: Path | None = None) -> list[dict[str, Any]]:
        lines = self.egt("plan", str(manifest or self.manifest), "-o", "json", check=False).stdout
        result: list[dict[str, Any]] = json.loads(lines)
        return result

    def edited(self, name: str, **changes: dict[str, Any]) -> Path:
        run = yaml.safe_load(self.manifest.read_text())
        for stage, fields in changes.items():
            run["spec"][stage].update(fields)
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(run))
        return path


def spec_of(port: int) -> dict[str, Any]:
    plain = {"prompt": "plain-v1"}
    return {
        "apiVersion": "egt.dev/v1alpha1",
        "kind": "EGTRun",
        "metadata": {"name": "small"},
        "spec": {
            "model": {"source": "model"},
            "store": {"uri": "store"},
            "data": {
                "sft": {"source": "data/sft.jsonl"},
                "rl": {"source": "data/rl.jsonl"},
                "evaluate": [{"name": "heldout", "source": "data/heldout.jsonl", "answerOrder": "given"}],
            },
            "distill": {
                **plain, "temperatures": [1.0], "maxTokens": 64,
                "teacher": {"model": "digits-teacher", "baseUrl": f"http://127.0.0.1:{port}/v1"},
            },
            "sft": {
                **plain, "maxSteps": 120, "batchSize": 64, "microBatchSize": 64, "learningRate": 0.002,
                "warmupSteps": 20, "checkpointSteps": 40, "precision": "float32", "zeroStage": 2, "freezeVision": False,
            },
            "probe": {**plain, "maxNewTokens": 48, "batchSize": 32, "chunkRows": 32, "precision": "float32",
                      "workers": 2},
            "curate": {"keep": {"share": 0.3}},
            "rl": {
                **plain, "epochs": 1, "batchSize": 8, "microBatchSize": 8, "learningRate": 0.0001, "maxNewTokens": 40,
                "maxPromptTokens": 128, "checkpointSteps": 2, "zeroStage": 2, "freezeVision": False,
            },
            "evaluate": {**plain, "maxNewTokens": 48, "batchSize": 64, "precision": "float32"},
        },
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def digits_place(folder: Path, *, sizes: dict[str, int] | None = None, **stages: dict[str, Any]) -> Iterator[Place]:
    """Data, model, manifest and a teacher that answers as long as the context lasts.

    ``stages`` replaces the settings of stages, ``sizes`` the numbers of pairs.
    """
    port = free_port()
    place = Place(folder, folder / "small.yaml")
    run = spec_of(port)
    run["spec"] |= stages
    place.manifest.write_text(yaml.safe_dump(run))
    counts = sizes or {"sft": 600, "rl": 120, "heldout": 80}
    place.egt("data", "digits", "data", *(word for name, n in counts.items() for word in (f"--{name}", str(n))))
    place.egt("model", "tiny", "model")
    with (folder / "teacher.log").open("w") as log:
        # Its classifier learns at start: with as many threads as cores, and these in use, that takes minutes.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [EGT, "data", "teacher", "--port", str(port)]
        teacher = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", teacher)
        yield place
    finally:
        teacher.terminate()
        teacher.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            assert process.poll() is None, "the teacher ended"
            assert time.monotonic() < deadline, "the teacher does not answer"
            time.sleep(0.1)

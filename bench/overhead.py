"""What the machinery costs around a stage: process start to user code, and the gap between two stages.

Usage: python bench/overhead.py. Runs prepare, sft (4 steps), probe and evaluate on 64 pairs with `egt local run`, and
reads the times off task files and manifests. Imports are measured apart, by an import of the same modules in a process
of their own: they are what the stage pays to have its libraries, not what we add.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml

EGT = str(Path(sys.executable).with_name("egt"))


def main() -> None:
    """Print one line a stage and the verdict against the bar of one second."""
    with tempfile.TemporaryDirectory(prefix="egt-overhead-") as name:
        folder = Path(name)
        stages = run(folder)
        print(f"{'stage':10} {'start to user code':>20} {'imports of it':>15} {'gap before':>12}")
        worst = 0.0
        before: float | None = None
        for stage in stages:
            manifest = json.loads((Path(stage["artifact"].removeprefix("file://")) / "manifest.json").read_text())
            started = datetime.fromisoformat(manifest["producer"]["started"]).timestamp()
            finished = datetime.fromisoformat(manifest["producer"]["finished"]).timestamp()
            (task,) = (folder / "store/local/overhead/tasks").glob(f"{stage['name']}-*/task.json")
            spawned = task.stat().st_mtime
            imports = import_seconds()
            start, gap = started - spawned, spawned - before if before else 0.0
            worst = max(worst, start - imports + gap)
            print(f"{stage['name']:10} {start:20.2f} {imports:15.2f} {gap:12.2f}")
            before = finished
        print(f"worst overhead of a stage besides imports: {worst:.2f} s (bar: 1.0 s, ratio {worst / 1.0:.2f})")


def import_seconds() -> float:
    """Seconds that Python and the imports of the entry point take, without any work of ours."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import egt_pipeline.lifecycle"], check=True)
    return time.perf_counter() - started


def run(folder: Path) -> list[dict[str, str]]:
    """Run the small manifest; the stages of its outcome."""
    egt(folder, "data", "digits", "data", "--sft", "64", "--rl", "64", "--heldout", "8")
    egt(folder, "model", "tiny", "model")
    rows = [json.loads(line) for line in (folder / "data/sft.jsonl").read_text().splitlines()]
    with (folder / "data/sft.jsonl").open("w") as lines:
        for row in rows:
            response = f"<think>A look at both.</think><answer>{row['label']}</answer>"
            lines.write(json.dumps({**row, "response": response}) + "\n")
    plain = {"prompt": "plain-v1", "precision": "float32"}
    (folder / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "egt.dev/v1alpha1",
                "kind": "EGTRun",
                "metadata": {"name": "overhead"},
                "spec": {
                    "model": {"source": "model"},
                    "store": {"uri": "store"},
                    "data": {
                        "sft": {"source": "data/sft.jsonl"},
                        "rl": {"source": "data/rl.jsonl"},
                        "evaluate": [{"source": "data/heldout.jsonl"}],
                    },
                    "distill": {"enabled": False},
                    "sft": {**plain, "maxSteps": 4, "batchSize": 16, "microBatchSize": 16, "zeroStage": 0},
                    "probe": {**plain, "maxNewTokens": 8},
                    "curate": {"enabled": False},
                    "rl": {"enabled": False},
                    "evaluate": {**plain, "maxNewTokens": 8},
                },
            }
        )
    )
    done = egt(folder, "local", "run", "run.yaml", "-o", "json")
    stages: list[dict[str, str]] = json.loads(done.splitlines()[-1])["stages"]
    return stages


def egt(folder: Path, *arguments: str) -> str:
    """Standard output of an egt command run in ``folder``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([EGT, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()

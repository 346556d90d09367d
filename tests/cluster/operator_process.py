"""The operator as a process of its own against a test cluster."""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from prometheus_client.parser import text_string_to_metric_families

from control_plane import ControlPlane, process, wait_for
from s3_server import free_port

QUICK = {
    "image": "egt-pipeline:test", "backoff_seconds": "1", "progress_seconds": "1", "resync_seconds": "20",
    "pending_seconds": "5", "lost_node_seconds": "5", "grace_seconds": "5",
}  # fmt: skip
COMMAND = [sys.executable, "-m", "egt_operator"]


@dataclass(frozen=True)
class RunningOperator:
    """One replica."""

    port: int
    log: Path
    process: "Popen[bytes]"

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def figure(self, name: str, **labels: str) -> float:
        """One of its metrics, summed over what ``labels`` leave open."""
        samples = [one for family in text_string_to_metric_families(self.metrics()) for one in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    def lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def peak_mib(pid: int) -> float:
    """Its peak resident memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def environment(port: int, kubeconfig: Path, settings: dict[str, str]) -> dict[str, str]:
    found = {**QUICK, "metrics_port": str(port), "identity": f"operator-{port}", **settings}
    return {**os.environ, **{f"EGT_{name.upper()}": v for name, v in found.items()}, "KUBECONFIG": str(kubeconfig)}


def why_it_ends(kubeconfig: Path) -> str:
    """The last words of an operator that cannot work. Raises AssertionError when it works on."""
    done = subprocess.run(
        COMMAND, env=environment(free_port(), kubeconfig, {}), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout
    return done.stderr.strip().splitlines()[-1]


@contextlib.contextmanager
def operator_process(plane: ControlPlane, kubeconfig: Path | None = None, **settings: str) -> Iterator[RunningOperator]:
    """An operator that leads and watches; ``settings`` as in settings.py."""
    port = free_port()
    log = plane.folder / f"operator-{port}.log"
    with process(COMMAND, log, environment(port, kubeconfig or plane.kubeconfig, settings)) as running:
        wait_for(f"the operator leads ({log})", lambda: running.poll() is not None or '"leads as' in log.read_text())
        assert running.poll() is None, f"exit code {running.returncode}: {log.read_text()}"
        yield RunningOperator(port, log, running)

"""The operator as a process of its own against a test cluster."""

import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from control_plane import ControlPlane, process, wait_for
from s3_server import free_port

QUICK = {
    "image": "egt-pipeline:test", "backoff_seconds": "1", "progress_seconds": "1", "resync_seconds": "20",
    "pending_seconds": "5", "lost_node_seconds": "5", "grace_seconds": "5",
}  # fmt: skip


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

    def lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def operator_process(plane: ControlPlane, kubeconfig: Path | None = None, **settings: str) -> Iterator[RunningOperator]:
    """An operator that leads and watches; ``settings`` as in settings.py."""
    port = free_port()
    found = {**QUICK, "metrics_port": str(port), "identity": f"operator-{port}", **settings}
    environment = {f"EGT_{name.upper()}": value for name, value in found.items()}
    log = plane.folder / f"operator-{port}.log"
    command = [sys.executable, "-m", "egt_operator"]
    env = {**os.environ, **environment, "KUBECONFIG": str(kubeconfig or plane.kubeconfig)}
    with process(command, log, env) as running:
        wait_for(f"the operator leads ({log})", lambda: running.poll() is not None or '"leads as' in log.read_text())
        assert running.poll() is None, f"exit code {running.returncode}: {log.read_text()}"
        yield RunningOperator(port, log, running)

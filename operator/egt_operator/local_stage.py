"""One attempt of one stage as local processes: start, watch, stop, and the reason when it fails."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from egt_pipeline.contract.errors import EgtError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Progress, Summary, TaskFile

_POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0  # for a checkpoint after SIGTERM
_LOG_LINES = 15  # of a failed stage, shown with its error


class StageFailedError(EgtError):
    """A stage of a local run ended with an error; carries its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(task: TaskFile, folder: Path, log: Path, worker: int, lock: int) -> subprocess.Popen[bytes]:
    """One worker of a stage, in a process group of its own, that ends when this process does.

    It holds the run's ``lock`` (a file descriptor) with this process: after a kill nobody starts before it has ended.
    """
    command = [sys.executable, "-m", "egt_pipeline", str(task.stage), "--task", str(folder / "task.json")]
    # Two threads on a core that something else uses as well were twenty times slower than one.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--worker", str(worker), "--exit-with-parent"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )


def watch(workers: list[subprocess.Popen[bytes]], folder: Path, progressed: Callable[[Progress | None], None]) -> None:
    """Wait for all workers; when one fails, stop the others. Nothing that they started is left."""
    while any(process.poll() is None for process in workers):
        progressed(_progress(folder, len(workers)))
        if any(process.returncode for process in workers):
            break
        time.sleep(_POLL_SECONDS)
    stop(workers)


def _progress(folder: Path, workers: int) -> Progress | None:
    """The progress of all workers together: units add up, the figure is the first worker's."""
    paths = [folder / f"progress-{worker}.json" for worker in range(workers)]
    parts = [Progress.model_validate_json(path.read_text()) for path in paths if path.exists()]
    if not parts:
        return None
    total = sum(part.total for part in parts)
    return parts[0].model_copy(update={"done": sum(part.done for part in parts), "total": total})


def stop(workers: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to every worker, time for a checkpoint, then SIGKILL to what is left of its process group."""
    for process in workers:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure(stage: StageName, summary: Path, log: Path, exit_code: int) -> StageFailedError:
    """The error of a failed stage: its own summary if it left one, else the last lines of its log."""
    if exit_code < 0:
        exit_code = 128 - exit_code
    if summary.exists():
        message = Summary.model_validate_json(summary.read_text()).message
        return StageFailedError(f"{stage}: {message}\n(log: {log})", exit_code)
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    tail = "\n".join(f"  {line}" for line in lines)
    return StageFailedError(f"{stage}: exit code {exit_code}; the last lines of {log}:\n{tail}", exit_code)

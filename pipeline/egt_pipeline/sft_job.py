"""One training of the sft stage: what it is told, what it tells, and how its processes are started."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from egt_pipeline.contract.errors import EgtError, TaskError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.task import Record
from egt_pipeline.deepspeed_checkpoints import WEIGHTS_ONLY
from egt_pipeline.store import check_space

LOSSES_FILE = "losses.parquet"
_POLL_SECONDS = 0.1
_READ_BYTES = 1 << 16  # what a FIFO holds


class Job(Record):
    """What a training is told. Results go to ``out``: ``model/``, and ``losses.parquet`` as the last."""

    recipe: SFTRecipe
    processes: int
    model: Path
    images: Path
    samples: Path
    out: Path
    checkpoints: Path
    resume: Path | None
    events: Path  # a FIFO; process 0 breaks off when nobody reads it any more, so nothing outlives the stage
    stop: Path  # appears when the training is to write a checkpoint and end


class Event(Record):
    """What process 0 tells the stage: a step is done, a checkpoint is complete, or nothing can be done (``failed``)."""

    step: int
    steps: int
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    checkpoint: Path | None = None
    failed: str | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What is known of the step, by name."""
        named = {"loss": self.loss, "grad_norm": self.grad_norm, "learning_rate": self.learning_rate}
        return {name: value for name, value in named.items() if value is not None}


def history(checkpoint: Path) -> list[Event]:
    """The steps that a checkpoint was reached by."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    figures = ("step", "loss", "grad_norm", "learning_rate")
    steps = [{name: entry[name] for name in figures} for entry in state["log_history"] if "loss" in entry]
    return [Event(steps=state["max_steps"], **step) for step in steps]


Report = Callable[[Event], None]


def run_job(job: Job, report: Report, stopping: Callable[[], bool]) -> None:
    """Train until the last step, or until ``stopping``; then a checkpoint is the last thing reported.

    One process without DeepSpeed trains in this process; everything else is started by torchrun.
    Raises TaskError when no retry can help, EgtError when a process ended for another reason.
    """
    if job.processes == 1 and job.recipe.zero_stage == 0:
        from egt_pipeline.sft_train import train

        return train(job, report, stopping)
    return _run_processes(job, report, stopping)


def _run_processes(job: Job, report: Report, stopping: Callable[[], bool]) -> None:
    path = job.events.with_name("job.json")
    path.write_text(job.model_dump_json(by_alias=True))
    os.mkfifo(job.events)
    # Not waiting for a writer: a process may end before it opens the other end.
    reader = os.open(job.events, os.O_RDONLY | os.O_NONBLOCK)
    try:
        command = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(job.processes)]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "-m", "egt_pipeline.sft_train", str(path)],
            stdin=subprocess.DEVNULL,
            env=_environment(job.processes),
        )
        _follow(process, _Lines(reader, report), job.stop, stopping)
    finally:
        os.close(reader)
    if process.returncode and not job.stop.exists():
        check_space(job.checkpoints.parent)
        raise EgtError(f"sft: a training process ended with an error (torchrun: exit code {process.returncode})")


def _follow(process: subprocess.Popen[bytes], lines: "_Lines", stop: Path, stopping: Callable[[], bool]) -> None:
    try:
        while process.poll() is None:
            lines.read()
            if stopping():
                stop.touch()
            time.sleep(_POLL_SECONDS)
        lines.read()
    finally:
        process.kill()  # its children end with it
        process.wait()


class _Lines:
    """Events off a FIFO, one JSON object a line."""

    def __init__(self, reader: int, report: Report) -> None:
        self._reader, self._report, self._rest = reader, report, b""

    def read(self) -> None:
        """Report everything that has come in. Raises TaskError when training says that it failed for good."""
        while block := self._block():
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                event = Event.model_validate_json(line)
                if event.failed:
                    raise TaskError(event.failed)
                self._report(event)

    def _block(self) -> bytes:
        try:
            return os.read(self._reader, _READ_BYTES)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return b""
            raise


def _environment(processes: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return {
        # More threads than cores wait for each other in every operation.
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        **WEIGHTS_ONLY,
    }

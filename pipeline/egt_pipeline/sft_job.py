"""One training of the sft stage: what it is told, what it tells, and how its processes are started."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from egt_pipeline.contract.errors import EgtError, TaskError, error_of
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.task import Record
from egt_pipeline.deepspeed_checkpoints import WEIGHTS_ONLY
from egt_pipeline.peers import Line, Peers
from egt_pipeline.store import check_space

LOSSES_FILE = "losses.parquet"
_POLL_SECONDS = 0.1
_BLAME_SECONDS = 5.0  # a process fails when another pod is gone; that one's end is known to the line a moment later
_READ_BYTES = 1 << 16  # what a FIFO holds


class Job(Record):
    """What a training is told. Results go to ``out``: ``model/``, and ``losses.parquet`` as the last."""

    recipe: SFTRecipe
    processes: int
    peers: Peers
    model: Path
    images: Path
    samples: Path
    out: Path
    checkpoints: Path
    resume: Path | None
    events: (
        Path  # a FIFO; the pod's first process breaks off when nobody reads it any more, so nothing outlives the stage
    )
    stop: Path  # appears when the training is to write a checkpoint and end


class Event(Record):
    """What a pod's first process tells its stage: a step is done, a checkpoint complete; any: ``failed`` for good."""

    step: int
    steps: int
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    checkpoint: Path | None = None
    failed: str | None = None
    exit_code: int = TaskError.exit_code  # of a failure

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


def run_job(job: Job, report: Report, line: Line) -> None:
    """Train until the last step, or until a pod is asked to stop; then a checkpoint is the last thing reported.

    One process without DeepSpeed trains in this process; everything else is started by torchrun, in each pod its own.
    Raises TaskError when no retry can help, PeerLostError, and EgtError when a process ended for another reason.
    """
    if job.processes == 1 and job.recipe.zero_stage == 0:
        from egt_pipeline.sft_train import train

        return train(job, report, line.stopping)
    return _run_processes(job, report, line)


def _run_processes(job: Job, report: Report, line: Line) -> None:
    path = job.events.with_name("job.json")
    path.write_text(job.model_dump_json(by_alias=True))
    os.mkfifo(job.events)
    # Not waiting for a writer: a process may end before it opens the other end.
    reader = os.open(job.events, os.O_RDONLY | os.O_NONBLOCK)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", *torchrun(job), "-m", "egt_pipeline.sft_train", str(path)],
            stdin=subprocess.DEVNULL,
            env=_environment(job.processes // job.peers.size),
        )
        _follow(process, _Lines(reader, report), job.stop, line.stopping)
    finally:
        os.close(reader)
    if process.returncode and not job.stop.exists():
        check_space(job.checkpoints.parent)
        line.settle(_BLAME_SECONDS)
        raise EgtError(f"sft: a training process ended with an error (torchrun: exit code {process.returncode})")


def torchrun(job: Job) -> list[str]:
    """The launcher's module and arguments. Which pods there are is known, so they need no place to find that out."""
    peers, processes = job.peers, job.processes // job.peers.size
    pods = ["--nnodes", str(peers.size), "--node-rank", str(peers.rank)]
    place = ["--master-addr", peers.address, "--master-port", str(peers.port)]
    where = [*pods, *place] if peers.size > 1 else ["--standalone"]
    return ["torch.distributed.run", *where, "--nproc-per-node", str(processes)]


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
        """Report everything that has come in. Raises what a process says that it failed with."""
        while block := self._block():
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                event = Event.model_validate_json(line)
                if event.failed:
                    raise error_of(event.exit_code, event.failed)
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

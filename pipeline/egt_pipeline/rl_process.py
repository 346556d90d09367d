"""The process of an RL run seen from outside: started, watched, stopped, its checkpoints handed on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from egt_pipeline.contract.errors import EgtError, StoppedError
from egt_pipeline.rl_run import RunFile, environment
from egt_pipeline.store import check_space

_POLL_SECONDS = 0.5
_STOP_SHARE = 0.6  # of the grace, for the step under way and its checkpoint; the rest brings that to the store
_LOG_CHARACTERS = 3000  # of the log's end that an error message repeats


def train(run: RunFile, *, on_poll: Callable[[], None], stopping: Callable[[], bool], grace_seconds: float) -> None:
    """Run to the end; ``on_poll`` is called twice a second and once more at the end.

    Once ``stopping`` is true, ``grace_seconds`` are left.

    Raises StoppedError when ``stopping`` turns true, and what the run itself failed with, or EgtError with the end of
    its log.
    """
    run_file = run.folder / "run.json"
    run_file.write_text(run.model_dump_json())
    log = run.folder / "openrlhf.log"
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "egt_pipeline.openrlhf_entry", str(run_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment(run, run_file),
            start_new_session=True,  # a Ctrl-C is for the stage, which then asks for a checkpoint
        )
        try:
            _watch(child, run, on_poll, stopping, _STOP_SHARE * grace_seconds)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # Ray and vLLM follow: each dies with its parent
                child.wait()
    on_poll()
    if child.returncode:
        raise _failure(run, child.returncode, log)


def _watch(
    child: subprocess.Popen[bytes],
    run: RunFile,
    on_poll: Callable[[], None],
    stopping: Callable[[], bool],
    stop_seconds: float,
) -> None:
    deadline = None
    while child.poll() is None:
        on_poll()
        if deadline is None and stopping():
            run.stop_request.touch()
            deadline = time.monotonic() + stop_seconds
        if deadline is not None and time.monotonic() > deadline:
            raise StoppedError("rl: stopped on request; the next attempt goes on from the last checkpoint")
        time.sleep(_POLL_SECONDS)


def _failure(run: RunFile, code: int, log: Path) -> EgtError:
    if run.failure.exists():
        said = json.loads(run.failure.read_text())
        kinds = {kind.exit_code: kind for kind in EgtError.__subclasses__()}
        return kinds.get(said["exit_code"], EgtError)(said["message"])
    check_space(run.folder)
    end = log.read_text(errors="replace")[-_LOG_CHARACTERS:]
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    return EgtError(f"rl: OpenRLHF {how}; the end of its log:\n{end}")


def newest_checkpoint(run: RunFile) -> tuple[int, Path] | None:
    """Step and folder of the newest checkpoint that is complete: OpenRLHF writes metric.json after all its files."""
    done = (path.parent for path in run.checkpoints.glob("_actor/global_step*/metric.json"))
    return max(((int(path.name.removeprefix("global_step")), path) for path in done), default=None)

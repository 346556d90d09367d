"""The process of an RL run seen from outside: started, watched, stopped, its checkpoints handed on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from egt_pipeline.contract.errors import EgtError, StoppedError, error_of
from egt_pipeline.peers import Line
from egt_pipeline.rl_run import COMPLETE, RunFile, environment
from egt_pipeline.store import check_space

_POLL_SECONDS = 0.5
_STOP_SHARE = 0.6  # of the grace, for the step under way and its checkpoint; the rest brings that to the store
_BLAME_SECONDS = 20.0  # Ray notices another pod's end, or its leader's, before that pod's own process has ended
_LOG_CHARACTERS = 3000  # of the log's end that an error message repeats


def train(run: RunFile, *, on_poll: Callable[[], None], line: Line, grace_seconds: float) -> None:
    """Run to the end; ``on_poll`` is called twice a second and once more at the end.

    Once a pod is asked to stop, ``grace_seconds`` are left.

    Raises StoppedError then, PeerLostError, and what the run itself failed with, or EgtError with the end of its log.
    """
    with _process(run) as child:
        _watch(child, run, on_poll, line.stopping, _STOP_SHARE * grace_seconds)
    on_poll()
    if child.returncode:
        raise _failure(run, child.returncode, line)


def lend(run: RunFile, *, on_poll: Callable[[], None], line: Line) -> None:
    """Lend this pod's devices to the leader's run until that has ended in order; ``on_poll`` as in ``train``.

    Raises PeerLostError, or EgtError with the end of the log.
    """
    with _process(run) as child:
        while not line.over and child.poll() is None:
            on_poll()
            line.stopping()
            time.sleep(_POLL_SECONDS)
    if not line.over:
        error = _failure(run, child.returncode, line)
        if not line.over:
            raise error
    on_poll()


@contextmanager
def _process(run: RunFile) -> Iterator[subprocess.Popen[bytes]]:
    """OpenRLHF, or in the other pods Ray alone; nothing of it is left afterwards."""
    run_file = run.folder / "run.json"
    run_file.write_text(run.model_dump_json())
    with _log(run).open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "egt_pipeline.openrlhf_entry", str(run_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment(run, run_file),
            start_new_session=True,  # a Ctrl-C is for the stage, which then asks for a checkpoint
        )
        try:
            yield child
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # Ray and vLLM follow: each dies with its parent
                child.wait()


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
        if stopping() and deadline is None:
            run.stop_request.touch()
            deadline = time.monotonic() + stop_seconds
        if deadline is not None and time.monotonic() > deadline:
            raise StoppedError("rl: stopped on request; the next attempt goes on from the last checkpoint")
        time.sleep(_POLL_SECONDS)


def _log(run: RunFile) -> Path:
    return run.folder / "openrlhf.log"


def _failure(run: RunFile, code: int, line: Line) -> EgtError:
    """What the process failed with. Raises PeerLostError when it failed because another pod is gone."""
    if run.failure.exists():
        said = json.loads(run.failure.read_text())
        return error_of(said["exit_code"], said["message"])
    check_space(run.folder)
    line.settle(_BLAME_SECONDS)
    end = _log(run).read_text(errors="replace")[-_LOG_CHARACTERS:]
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    return EgtError(f"rl: OpenRLHF {how}; the end of its log:\n{end}")


def newest_checkpoint(run: RunFile) -> tuple[int, Path] | None:
    """Step and folder of the newest checkpoint that is complete on this machine."""
    done = (path.parent for path in run.checkpoints.glob(f"_actor/global_step*/{COMPLETE}"))
    return max(((int(path.name.removeprefix("global_step")), path) for path in done), default=None)

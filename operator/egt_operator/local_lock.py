"""One call at a time drives a local run, and not before the stages of a killed call have ended."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from egt_operator.local_stage import GRACE_SECONDS
from egt_pipeline.contract.errors import TaskError

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[int]:
    """Holds the run in ``state``; the lock's file descriptor, which its stages hold as well.

    What a call that was killed left behind is waited for. Raises TaskError naming the call that holds the run.
    """
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, state)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, state: Path) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner = int(os.pread(descriptor, 20, 0) or 0)
        if _is_running(owner) or time.monotonic() > deadline:
            raise TaskError(f"{state}: this run is under way in process {owner}; wait for it or stop it")
        time.sleep(_POLL_SECONDS)


def _is_running(process: int) -> bool:
    if not process:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, so it runs
        return True
    return True

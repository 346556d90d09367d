"""Errors with a meaning for whoever decides about a retry.

    EgtError                    exit code 1: a retry may help
    ├── TaskError               64: the task can never succeed as it is written
    ├── ArtifactError           65: an input artifact is missing or damaged; its stage has to run again
    ├── UnavailableError        69: a service (teacher, judge, store) does not answer; try later
    ├── DiskFullError           74: the same task fits on a larger disk
    ├── PeerLostError           75: another pod of the attempt is gone; that pod says why
    └── StoppedError            143: asked to stop (SIGTERM), with a checkpoint where the stage can

Codes 64 to 78 follow sysexits.h; every other exit code (a crash, 137 for a kill) may be retried.
A message names the field, row or file, the value seen, and what would be accepted.
"""

EXIT_DONE = 0


def excerpt(text: str, characters: int) -> str:
    """At most so many characters (20 or more) of ``text``: its beginning, and more of its end, where logs say why."""
    if len(text) <= characters:
        return text
    gap = " ... "
    head = (characters - len(gap)) // 4
    return text[:head] + gap + text[head + len(gap) - characters :]


class EgtError(Exception):
    """An error whose message is meant for people; ``exit_code`` is what the process ends with."""

    exit_code = 1


class TaskError(EgtError):
    """The task can never succeed: a bad recipe, bad data, nothing left to train on."""

    exit_code = 64


class ArtifactError(EgtError):
    """A published artifact is missing, truncated or changed since its manifest was written."""

    exit_code = 65


class UnavailableError(EgtError):
    """A service outside of this process does not answer, or refuses for now."""

    exit_code = 69


class DiskFullError(EgtError):
    """No space left where the stage writes."""

    exit_code = 74


class PeerLostError(EgtError):
    """Another pod of the same attempt does not answer any more."""

    exit_code = 75


class StoppedError(EgtError):
    """SIGTERM arrived; what was committed so far is used by the next attempt."""

    exit_code = 143


def error_of(exit_code: int, message: str) -> EgtError:
    """The error that ends a process with ``exit_code``, as another process of the stage has said it."""
    kinds = {kind.exit_code: kind for kind in EgtError.__subclasses__()}
    return kinds.get(exit_code, EgtError)(message)

"""``python -m egt_pipeline STAGE --task FILE``: the only entry point of every stage, in a pod or on a laptop."""

import argparse
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from egt_pipeline.contract.errors import EXIT_DONE, ArtifactError, DiskFullError, EgtError
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.task import PROGRESS_MARK, Manifest, Progress, Summary, TaskFile
from egt_pipeline.gpus import no_room

_GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL of a stage whose parent is gone
_PROGRESS_SECONDS = 0.2  # a view redraws no faster
_LOGGED_PROGRESS_SECONDS = 10.0  # whoever reads a log asks less often
# What a PyTorchJob says of its pods; the processes that a stage starts itself get their own.
_OF_PODS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; return its exit code (see contract.errors)."""
    parser = argparse.ArgumentParser(prog="python -m egt_pipeline", description=__doc__)
    parser.add_argument("stage", choices=[str(name) for name in StageName])
    parser.add_argument("--task", type=Path, required=True, help="the task file (JSON) the operator wrote")
    parser.add_argument("--worker", type=int, default=int(os.environ.get("RANK", "0")), help="number of this worker")
    parser.add_argument(
        "--exit-with-parent",
        action="store_true",
        help="stop when standard input closes, as it does when the parent dies",
    )
    options = parser.parse_args(arguments)
    of_pods = {name: os.environ.pop(name) for name in _OF_PODS if name in os.environ}
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]
    task = TaskFile.model_validate_json(options.task.read_bytes())
    if options.stage != task.stage:
        parser.error(f"--task {options.task}: is for stage {task.stage}, not {options.stage}")
    if options.exit_with_parent:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    return _run(task, options.worker, of_pods)


def _run(task: TaskFile, worker: int, of_pods: Mapping[str, str]) -> int:
    stop = threading.Event()

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        from egt_pipeline.lifecycle import run_task
        from egt_pipeline.peers import ALONE, peers_of

        # Workers of a sharded stage do not know each other.
        peers = ALONE if STAGE_TYPES[task.stage].sharded else peers_of(of_pods, task.workers)
        path = task.progress_path
        progress = _ProgressFile(Path(path.format(worker=worker))) if path else _ProgressLog()
        manifest = run_task(task, worker=worker, peers=peers, progress=progress, stopping=stop.is_set)
    except EgtError as error:
        return _fail(task, worker, error)
    except FileNotFoundError as error:
        traceback.print_exc()
        return _fail(task, worker, ArtifactError(f"{error.filename}: is missing"))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _fail(task, worker, DiskFullError(f"{error.filename or task.scratch}: no space left on the device"))
    except Exception as error:
        if (too_small := no_room(task.stage, error)) is None:
            raise
        traceback.print_exc()
        return _fail(task, worker, too_small)
    _write_summary(task, worker, _summary(task, manifest))
    return EXIT_DONE


def _fail(task: TaskFile, worker: int, error: EgtError) -> int:
    print(f"{task.stage}: {error}", file=sys.stderr, flush=True)
    phase = "Stopped" if error.exit_code == 143 else "Failed"
    summary = Summary(
        stage=task.stage, digest=task.digest or "", phase=phase, exit_code=error.exit_code, message=str(error)
    )
    _write_summary(task, worker, summary)
    return error.exit_code


def _summary(task: TaskFile, manifest: Manifest | None) -> Summary:
    found = {"content": manifest.content, "metrics": manifest.metrics} if manifest else {}
    digest = manifest.digest if manifest else task.known_digest()
    return Summary(stage=task.stage, digest=digest, phase="Succeeded", exit_code=EXIT_DONE, **found)


def _write_summary(task: TaskFile, worker: int, summary: Summary) -> None:
    if task.summary_path is not None:
        Path(task.summary_path.format(worker=worker)).write_text(summary.fitting().model_dump_json())


class _ProgressLog:
    """Progress as lines of the log, where nobody names a file for it: the operator reads them there."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next or progress.done >= progress.total:
            self._next = now + _LOGGED_PROGRESS_SECONDS
            print(f"{PROGRESS_MARK}{progress.model_dump_json()}", flush=True)


class _ProgressFile:
    """Progress as a small JSON file that is replaced atomically; a reader never sees half of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next and progress.done < progress.total:
            return
        self._next = now + _PROGRESS_SECONDS
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(progress.model_dump()))
        partial.replace(self._path)


def _exit_with_parent() -> None:
    """Stop the whole process group once the parent's end of standard input closes."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is published and closed; taking torch and its threads apart would cost a second a stage.
    os._exit(code)

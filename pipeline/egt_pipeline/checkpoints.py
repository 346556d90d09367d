"""Checkpoints of a training as work in progress: one directory a pod and step, the newest complete one kept."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from egt_pipeline.context import Context
from egt_pipeline.contract.errors import ArtifactError, EgtError
from egt_pipeline.peers import Line


@contextmanager
def say_only_after(error: BaseException | None) -> Iterator[None]:
    """Print what a commit failed with where ``error`` came before it: that says how the training ended."""
    try:
        yield
    except Exception as failed:
        if error is None:
            raise
        print(f"a checkpoint was not committed: {failed}", flush=True)


class Checkpoints:
    """Checkpoints of one stage's training. Each pod commits what its processes wrote; all parts together count.

    DeepSpeed divides the optimiser among the processes, so another number of processes or pods starts anew. Parts of
    two attempts are never taken for one checkpoint: they are of two different trainings.

    A context manager. Commits go on beside whoever began them, one after another; meanwhile he hears of a request to
    stop and of a lost pod. The context is left once all are done, however the training ended.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._work, self._peers = context, context.work, context.peers
        self._prefix = f"checkpoints/processes-{context.processes}-pods-{context.peers.size}/"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._begun: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        with self._thread, say_only_after(error):
            for begun in self._begun:
                begun.result()

    def _parts(self, pod: int) -> set[tuple[int, str]]:
        """Step and name of what the pod has committed."""
        folder = f"{self._prefix}pod-{pod}/"
        return {(int(name[-6:]), name.removeprefix(folder)) for name in self._work.names(folder)}

    def _complete(self) -> list[tuple[int, str]]:
        """Those that every pod has committed its part of, in ascending order."""
        return sorted(set.intersection(*(self._parts(pod) for pod in range(self._peers.size))))

    @property
    def under_way(self) -> bool:
        """True while a commit is under way. Raises what one before it failed with."""
        self._raise_failures()
        return bool(self._begun)

    def _raise_failures(self) -> None:
        for begun in [begun for begun in self._begun if begun.done()]:
            self._begun.remove(begun)
            begun.result()

    def begin(self, step: int, folder: Path) -> None:
        """Begin to commit this pod's part, the files in ``folder``, which is gone afterwards, as are its older parts.

        Older than the newest complete checkpoint, that is: what others have not committed yet may never be. Raises what
        an earlier commit failed with.
        """
        self._raise_failures()
        self._begun.append(self._thread.submit(self._commit, step, folder))

    def _commit(self, step: int, folder: Path) -> None:
        own = f"{self._prefix}pod-{self._peers.rank}/"
        self._work.commit(f"{own}attempt-{self._context.attempt:03d}/step-{step:06d}", folder)
        shutil.rmtree(folder)
        complete = self._complete()
        for part in self._parts(self._peers.rank):
            if complete and part < complete[-1]:
                self._work.discard(own + part[1])

    def resume(self, target: Path, line: Line) -> int | None:
        """The step that all pods go on from, with what this one needs of it in ``target``; None at the start.

        The leader decides, so all have the same. A rank reads its own part, and of the leader's what all ranks share.
        """
        if self._peers.leads:
            newest = self._newest(target)
            line.tell(newest)
        elif newest := line.hear():
            for pod in (0, self._peers.rank):
                if not self._context.fetch_committed(f"{self._prefix}pod-{pod}/{newest}", target):
                    raise EgtError(f"{newest}: the part of pod {pod} is gone")
        return int(newest[-6:]) if newest else None

    def _newest(self, target: Path) -> str | None:
        for _, name in reversed(self._complete()):
            shutil.rmtree(target, ignore_errors=True)
            part = f"{self._prefix}pod-0/{name}"
            try:
                self._work.fetch(part, target)
            except ArtifactError as error:
                print(f"{part} is damaged and left out: {error}", flush=True)
                self._work.discard(part)  # another attempt's, and older ones are left
                continue
            print(f"goes on from {part}", flush=True)
            return name
        return None

"""Checkpoints of a training as work in progress: one directory each, the newest committed one kept."""

import shutil
from pathlib import Path

from egt_pipeline.context import Context
from egt_pipeline.contract.errors import ArtifactError


class Checkpoints:
    """Checkpoints of one stage's training.

    DeepSpeed divides the optimiser among the processes, so another number of processes starts anew.
    """

    def __init__(self, context: Context) -> None:
        self._work = context.work
        self._prefix = f"checkpoints/processes-{context.processes}/"

    def commit(self, step: int, folder: Path) -> None:
        """Commit the checkpoint in ``folder``, which is gone afterwards, as are the older ones."""
        name = f"{self._prefix}step-{step:06d}"
        self._work.commit(name, folder)
        shutil.rmtree(folder)
        for older in self._work.names(self._prefix):
            if older < name:
                self._work.discard(older)

    def newest(self, target: Path) -> int | None:
        """The step of the newest checkpoint that verifies, fetched into ``target``; None if there is none."""
        for name in reversed(self._work.names(self._prefix)):
            shutil.rmtree(target, ignore_errors=True)
            try:
                self._work.fetch(name, target)
            except ArtifactError as error:
                print(f"{name} is damaged and left out: {error}", flush=True)
                self._work.discard(name)  # a name is written once, and this step comes again
                continue
            print(f"goes on from {name}", flush=True)
            return int(name.rpartition("-")[2])
        return None

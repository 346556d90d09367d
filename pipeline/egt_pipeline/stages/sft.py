"""sft: the reward model learns to write the kept trajectories.

``model/`` is the trained model with its processor, ``losses.parquet`` has one row an optimiser step, and
``samples.parquet`` says of every row whether it was trained on, and why not.

Checkpoints are work in progress, one directory each. The newest that verifies is resumed from.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.task import Metric, Progress
from egt_pipeline.preferences import Images, Preference, read_preferences
from egt_pipeline.reward_model import load_processor, resolve_model
from egt_pipeline.sft_job import LOSSES_FILE, Event, Job, run_job
from egt_pipeline.sft_samples import SAMPLES, USED, encode, write_samples

SAMPLES_FILE = "samples.parquet"
TRAJECTORIES_FILE = "trajectories.parquet"
_KEPT = "kept"
_LAST_STEPS = 20  # over which the last loss is averaged: one batch says little


def run(recipe: SFTRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Writes ``model/``, ``losses.parquet`` and ``samples.parquet``; metrics count samples and steps.

    Raises TaskError when nothing is left to train on or the loss is no number, StoppedError after a last checkpoint.
    """
    model, data = resolve_model(inputs["model"]), inputs["data"] / "sft"
    rows = read_preferences(data, labelled=True)
    responses = _responses(rows, inputs.get("trajectories"))
    encoded = encode(recipe, load_processor(model), rows, responses, Images(data))
    tokens = context.scratch / "tokens.parquet"
    write_samples(encoded.samples, tokens)
    pq.write_table(pa.Table.from_pylist(encoded.records, schema=SAMPLES), out / SAMPLES_FILE)
    checkpoints = Checkpoints(context)
    job = Job(
        recipe=recipe,
        processes=context.processes,
        model=model,
        images=data,
        samples=tokens,
        out=out,
        checkpoints=context.scratch / "checkpoints",
        resume=checkpoints.newest(context.scratch / "resume"),
        events=context.scratch / "events",
        stop=context.scratch / "stop",
    )

    def report(event: Event) -> None:
        if event.checkpoint is not None:
            checkpoints.commit(event.step, event.checkpoint)
        else:
            loss = {"metric_name": "loss", "metric_value": event.loss}
            context.progress(Progress(done=event.step, total=event.steps, unit="steps", **loss))

    run_job(job, report, context.stopping)
    if not (out / LOSSES_FILE).exists():
        context.check_stopped()
    return StageResult(_metrics(encoded.records, out))


def _responses(rows: Sequence[Preference], trajectories: Path | None) -> list[str | None]:
    """The response of each row: the kept trajectory when there are trajectories, else the row's own."""
    if trajectories is None:
        return [row.response for row in rows]
    table = pq.read_table(trajectories / TRAJECTORIES_FILE, columns=["row", "response", "status"]).to_pylist()
    kept = {found["row"]: found["response"] for found in table if found["status"] == _KEPT}
    return [kept.get(row.row) for row in rows]


class Checkpoints:
    """Checkpoints of one training, the newest committed one kept.

    DeepSpeed divides the optimiser among the processes, so another number of processes starts anew.
    """

    def __init__(self, context: Context) -> None:
        self._work = context.work
        self._prefix = f"checkpoints/processes-{context.processes}/"

    def commit(self, step: int, folder: Path) -> None:
        """Commit the checkpoint in ``folder``, then drop the older ones."""
        name = f"{self._prefix}step-{step:06d}"
        self._work.commit(name, folder)
        shutil.rmtree(folder)
        for older in self._work.names(self._prefix):
            if older < name:
                self._work.discard(older)

    def newest(self, target: Path) -> Path | None:
        """The newest checkpoint that verifies, fetched into ``target``; None if there is none."""
        for name in reversed(self._work.names(self._prefix)):
            shutil.rmtree(target, ignore_errors=True)
            try:
                self._work.fetch(name, target)
            except ArtifactError as error:
                print(f"sft: {name} is damaged and left out: {error}", flush=True)
                self._work.discard(name)  # a name is written once, and this step comes again
                continue
            print(f"sft: goes on from {name}", flush=True)
            return target
        return None


def _metrics(records: Sequence[Mapping[str, object]], out: Path) -> dict[str, Metric]:
    losses = pq.read_table(out / LOSSES_FILE, columns=["loss"])["loss"].to_pylist()
    used = sum(record["status"] == USED for record in records)
    return {
        "samples": used,
        "skipped": len(records) - used,
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": fmean(losses[-_LAST_STEPS:]),
    }

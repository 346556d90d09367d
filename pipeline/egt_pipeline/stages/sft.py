"""sft: the reward model learns to write the kept trajectories.

``model/`` is the trained model with its processor, or ``adapter/`` what was added to the one it started from;
``losses.parquet`` has one row an optimiser step, ``tracking/`` the same as curves, and ``samples.parquet`` says of
every row whether it was trained on, and why not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.adapters import finish
from egt_pipeline.checkpoints import Checkpoints
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.task import Metric, Progress
from egt_pipeline.peers import Line
from egt_pipeline.preferences import Images, Preference, read_preferences
from egt_pipeline.reward_model import load_processor, resolve_model
from egt_pipeline.sft_job import LOSSES_FILE, Event, Job, history, run_job
from egt_pipeline.sft_samples import SAMPLES, USED, encode, write_samples
from egt_pipeline.tracking import tracked

SAMPLES_FILE = "samples.parquet"
TRAJECTORIES_FILE = "trajectories.parquet"
_KEPT = "kept"
_LAST_STEPS = 20  # over which the last loss is averaged: one batch says little


def run(recipe: SFTRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Writes the model or its adapter, curves and tables; metrics count samples and steps.

    Raises TaskError when nothing is left to train on or the loss is no number, StoppedError after a last checkpoint.
    """
    model, data = resolve_model(inputs["model"]), inputs["data"] / "sft"
    rows = read_preferences(data, labelled=True)
    responses = _responses(rows, inputs.get("trajectories"))
    encoded = encode(recipe, load_processor(model), rows, responses, Images(data))
    tokens = context.scratch / "tokens.parquet"
    write_samples(encoded.samples, tokens)
    pq.write_table(pa.Table.from_pylist(encoded.records, schema=SAMPLES), out / SAMPLES_FILE)
    resume = context.scratch / "resume"
    # The line first to go: the others need not wait until this pod's last checkpoint is committed.
    with Checkpoints(context) as checkpoints, context.line() as line:
        job = Job(
            recipe=recipe,
            processes=context.processes,
            peers=context.peers,
            model=model,
            images=data,
            samples=tokens,
            out=out,
            checkpoints=context.scratch / "checkpoints",
            resume=resume if checkpoints.resume(resume, line) is not None else None,
            events=context.scratch / "events",
            stop=context.scratch / "stop",
        )
        if not context.peers.leads:
            _follow(job, checkpoints, context, line)
            return StageResult(metrics={}, published_elsewhere=True)
        _lead(job, checkpoints, context, line)
    if recipe.lora:
        finish(out, model, recipe.lora)
    return StageResult(_metrics(encoded.records, out))


def _lead(job: Job, checkpoints: Checkpoints, context: Context, line: Line) -> None:
    """Train and report. Raises StoppedError when the training was stopped before its end."""
    with tracked(context, job.recipe, job.out) as log:
        for past in history(job.resume) if job.resume else ():
            log(past.step, past.figures)

        def report(event: Event) -> None:
            if event.checkpoint is not None:
                checkpoints.begin(event.step, event.checkpoint)
                return
            log(event.step, event.figures)
            loss = {"metric_name": "loss", "metric_value": event.loss}
            context.progress(Progress(done=event.step, total=event.steps, unit="steps", **loss))

        run_job(job, report, line)
    if not (job.out / LOSSES_FILE).exists():
        raise StoppedError("sft: stopped on request; the next attempt goes on from the checkpoint")


def _follow(job: Job, checkpoints: Checkpoints, context: Context, line: Line) -> None:
    """Train beside the leader, which reports. Raises StoppedError when this pod was asked to stop."""

    def report(event: Event) -> None:
        if event.checkpoint is not None:
            checkpoints.begin(event.step, event.checkpoint)

    run_job(job, report, line)
    context.check_stopped()


def _responses(rows: Sequence[Preference], trajectories: Path | None) -> list[str | None]:
    """The response of each row: the kept trajectory when there are trajectories, else the row's own."""
    if trajectories is None:
        return [row.response for row in rows]
    table = pq.read_table(trajectories / TRAJECTORIES_FILE, columns=["row", "response", "status"]).to_pylist()
    kept = {found["row"]: found["response"] for found in table if found["status"] == _KEPT}
    return [kept.get(row.row) for row in rows]


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

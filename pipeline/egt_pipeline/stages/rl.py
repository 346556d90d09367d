"""rl: StableReinforce on the curated samples, from easy to hard, through OpenRLHF (EGT section 2.4).

In: preferences with labels, the fine-tuned model, the selection. Out: ``model/`` or ``adapter/``, what the optimiser
saw in ``order.parquet``, ``losses.parquet``, ``rewards.parquet`` (see rl_records), and curves in ``tracking/``. The
order is compared with the plan; a run that saw anything else fails. Of several pods the first leads; the others lend it
their devices and keep their part of each checkpoint.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from egt_pipeline.adapters import ADAPTER_FOLDER, base_of, finish, trained_model
from egt_pipeline.checkpoints import Checkpoints
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.task import Progress
from egt_pipeline.curriculum import PlannedStep, check_order, plan_steps, planned_places
from egt_pipeline.peers import Line
from egt_pipeline.preferences import Images, Preference, read_preferences
from egt_pipeline.prompts import messages
from egt_pipeline.reward_model import MODEL_FOLDER
from egt_pipeline.rl_process import lend, newest_checkpoint, train
from egt_pipeline.rl_records import (
    RecordTail,
    figures_of,
    losses_table,
    metrics_of,
    order_table,
    rewards_table,
    seen_places,
)
from egt_pipeline.rl_run import RunFile
from egt_pipeline.tracking import Log, tracked


def run(recipe: RLRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Train and leave model and tables in ``out``.

    Raises TaskError when nothing was selected or the batch does not divide, EgtError when the order is not the plan.
    """
    _check_batches(recipe, context.processes)
    model = trained_model(inputs["model"], base_of(inputs), context.scratch)
    _check_model(model)
    selected = _selected(inputs)
    steps = plan_steps(
        len(selected),
        order=recipe.order,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
    )
    images = Images(inputs["data"] / "rl")
    described = _described(context, recipe, steps, selected=selected, images=images, model=model, out=out)
    # Ray's sockets need a path below 108 characters, which a scratch folder may exceed.
    with (
        tempfile.TemporaryDirectory(prefix="egt-", ignore_cleanup_errors=True) as ray_folder,
        context.line() as line,
    ):
        checkpoints = Checkpoints(context)
        step = _resume(described.folder, checkpoints, line)
        described = described.model_copy(update={"ray_folder": Path(ray_folder), "resume": step > 0})
        watch = _Watch(described, context, checkpoints, RecordTail(described.records), committed=step)
        if not context.peers.leads:
            lend(described, on_poll=watch, line=line)
            context.check_stopped()
            return StageResult(metrics={}, published_elsewhere=True)
        with tracked(context, recipe, out) as watch.log:
            train(described, on_poll=watch, line=line, grace_seconds=context.grace_seconds)
    result = _collect(described, steps, [sample.sample_id for sample in selected], out)
    if recipe.lora:
        finish(out, model, recipe.lora)
    return result


def _described(
    context: Context,
    recipe: RLRecipe,
    steps: Sequence[PlannedStep],
    *,
    selected: Sequence[Preference],
    images: Images,
    model: Path,
    out: Path,
) -> RunFile:
    """The run from its first step, with the prompts that it reads; where Ray's files go is not known yet."""
    folder = context.scratch / "rl"
    folder.mkdir(parents=True)
    return RunFile(
        recipe=recipe,
        steps=tuple(steps),
        model=model,
        dataset=_write_dataset(folder, selected, images, recipe),
        folder=folder,
        output=out / (ADAPTER_FOLDER if recipe.lora else MODEL_FOLDER),
        ray_folder=Path(),
        processes=context.processes,
        peers=context.peers,
        attempt=context.attempt,
        max_images=max(len(sample.images) for sample in selected),
        resume=False,
        parent=os.getpid(),
    )


def _check_batches(recipe: RLRecipe, processes: int) -> None:
    if recipe.batch_size % (recipe.micro_batch_size * processes):
        raise TaskError(
            f"rl.batchSize: {recipe.batch_size} is no multiple of microBatchSize {recipe.micro_batch_size} times "
            f"{processes} processes"
        )


def _check_model(model: Path) -> None:
    """OpenRLHF loads models with remote code allowed; a model that brings code is refused."""
    try:
        config = json.loads((model / "config.json").read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename}: the sft artifact holds no model") from error
    if "auto_map" in config:
        raise TaskError(f"{model / 'config.json'}: has auto_map; models that bring their own code are not run")


def _selected(inputs: Mapping[str, Path]) -> list[Preference]:
    """The kept samples in the order of their ranks."""
    table = pq.read_table(inputs["selection"] / "selection.parquet", columns=["sample_id", "rank", "decision"])
    kept = sorted((row["rank"], row["sample_id"]) for row in table.to_pylist() if row["decision"] == "kept")
    if not kept:
        raise TaskError("curate.keep: no sample is left to train on; keep more")
    preferences = {row.sample_id: row for row in read_preferences(inputs["data"] / "rl", labelled=True)}
    missing = [sample_id for _, sample_id in kept if sample_id not in preferences]
    if missing:
        raise ArtifactError(f"selection.parquet: sample_id {missing[0]!r} is not among the prepared preferences")
    return [preferences[sample_id] for _, sample_id in kept]


def _write_dataset(folder: Path, samples: Sequence[Preference], images: Images, recipe: RLRecipe) -> Path:
    """OpenRLHF's prompts as JSON lines, row = rank; the label carries what the reward and the records need."""
    pictures = folder / "images"
    pictures.mkdir()
    for image_id in {image_id for sample in samples for image_id in sample.images}:
        (pictures / image_id).write_bytes(images[image_id])
    path = folder / "prompts.jsonl"
    with path.open("w") as lines:
        for sample in samples:
            prompt = messages(recipe.prompt, sample.question, sample.answer_1, sample.answer_2, len(sample.images))
            row = {
                "prompt": prompt,
                "images": [str(pictures / image_id) for image_id in sample.images],
                "label": json.dumps({"sample_id": sample.sample_id, "label": sample.label}),
            }
            lines.write(json.dumps(row) + "\n")
    return path


def _resume(folder: Path, checkpoints: Checkpoints, line: Line) -> int:
    """Put the newest checkpoint where OpenRLHF looks for it; its step, 0 if there is none."""
    fetched = folder / "fetched"
    step = checkpoints.resume(fetched, line)
    if step is None:
        return 0
    shutil.move(fetched / "steps.jsonl", folder / "steps.jsonl")
    actor = folder / "checkpoints" / "_actor"
    actor.mkdir(parents=True)
    shutil.move(fetched / "state", actor / f"global_step{step}")
    (actor / "latest").write_text(f"global_step{step}")
    return step


@dataclass
class _Watch:
    """Called again and again while the run goes on: reports progress, commits this pod's part of new checkpoints."""

    run: RunFile
    context: Context
    checkpoints: Checkpoints
    tail: RecordTail
    committed: int = 0
    log: Log = field(default=lambda _step, _figures: None)

    def __call__(self) -> None:
        for record in self.tail.new() if self.run.peers.leads else ():
            self.log(record.step, figures_of(record))
            self.context.progress(
                Progress(
                    done=record.step,
                    total=len(self.run.steps),
                    unit="steps",
                    metric_name="reward",
                    metric_value=record.mean("reward"),
                )
            )
        newest = newest_checkpoint(self.run)
        if newest is not None and newest[0] > self.committed:
            self._commit(*newest)

    def _commit(self, step: int, state: Path) -> None:
        """Commit the checkpoint with the records up to its step; hard links keep it while OpenRLHF goes on."""
        self.committed = step
        copy = self.run.folder / "committing"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(state, copy / "state", copy_function=os.link)
        if self.run.peers.leads:
            lines = self.run.records.read_text().splitlines(keepends=True)
            (copy / "steps.jsonl").write_text("".join(lines[:step]))
        else:  # OpenRLHF removes old ones where its first process is, and only there
            for older in state.parent.glob("global_step*"):
                if int(older.name.removeprefix("global_step")) < step:
                    shutil.rmtree(older)
        self.checkpoints.commit(step, copy)


def _collect(run: RunFile, steps: Sequence[PlannedStep], sample_ids: Sequence[str], out: Path) -> StageResult:
    records = RecordTail(run.records).new()
    check_order(planned_places(steps, sample_ids), seen_places(records))
    pq.write_table(order_table(records), out / "order.parquet")
    pq.write_table(losses_table(records), out / "losses.parquet")
    pq.write_table(rewards_table(records), out / "rewards.parquet")
    return StageResult(metrics=metrics_of(records))

"""rl: StableReinforce on the curated samples, from easy to hard, through OpenRLHF (EGT section 2.4).

In: preferences with labels, the fine-tuned model, the selection. Out: ``model/`` or ``adapter/``, what the optimiser
saw in ``order.parquet``, ``losses.parquet``, ``rewards.parquet`` (see rl_records), curves in ``tracking/``, and
``samples.parquet``, which says of every kept sample whether it was trained on, and why not. The order is compared with
the plan; a run that saw anything else fails. Of several pods the first leads; the others lend it their devices and keep
their part of each checkpoint.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.adapters import ADAPTER_FOLDER, base_of, finish, trained_model
from egt_pipeline.checkpoints import Checkpoints, say_only_after
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.errors import ArtifactError, TaskError, UnavailableError
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.task import Progress
from egt_pipeline.curriculum import PlannedStep, check_order, plan_steps, planned_places
from egt_pipeline.peers import Line
from egt_pipeline.preferences import Images, Preference
from egt_pipeline.reward_model import MODEL_FOLDER, load_processor
from egt_pipeline.rl_health import Health
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
from egt_pipeline.rl_samples import SAMPLES, Selected, select, write_dataset
from egt_pipeline.tracking import Log, tracked

SAMPLES_FILE = "samples.parquet"


def run(recipe: RLRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Train and leave model and tables in ``out``.

    Raises TaskError when nothing was selected or the batch does not divide, EgtError when the order is not the plan.
    """
    _check_batches(recipe, context.processes)
    model = trained_model(inputs["model"], base_of(inputs), context.scratch)
    _check_model(model)
    data = inputs["data"] / "rl"
    images = Images(data)
    selected = select(recipe, load_processor(model), data, inputs["selection"], images)
    steps = _planned(recipe, len(selected.samples))
    pq.write_table(pa.Table.from_pylist(selected.records, schema=SAMPLES), out / SAMPLES_FILE)
    described = _described(context, recipe, steps, selected=selected.samples, images=images, model=model, out=out)
    # Ray's sockets need a path below 108 characters, which a scratch folder may exceed. The line is the first to go, so
    # that the others need not wait until this pod's last checkpoint is committed.
    with (
        tempfile.TemporaryDirectory(prefix="egt-", ignore_cleanup_errors=True) as ray_folder,
        Checkpoints(context) as checkpoints,
        _Watch(described, context, checkpoints) as watch,
        context.line() as line,
    ):
        step = watch.committed = _resume(described.folder, checkpoints, line)
        described = described.model_copy(update={"ray_folder": Path(ray_folder), "resume": step > 0})
        if context.peers.leads:
            with tracked(context, recipe, out) as watch.log:
                train(described, on_poll=watch, line=line, grace_seconds=context.grace_seconds)
        else:
            lend(described, on_poll=watch, line=line)
    if not context.peers.leads:
        context.check_stopped()
        return StageResult(metrics={}, published_elsewhere=True)
    result = _collect(described, steps, selected, out)
    if recipe.lora:
        finish(out, model, recipe.lora)
    return result


def _planned(recipe: RLRecipe, samples: int) -> tuple[PlannedStep, ...]:
    return plan_steps(
        samples,
        order=recipe.order,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
    )


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
        dataset=write_dataset(folder, selected, images, recipe),
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
    """Called again and again while the run goes on: reports progress, commits this pod's part of new checkpoints.

    Raises what ``Health`` finds. A context manager: the newest checkpoint is committed however the run ended, but for
    one that is not to be gone on from.
    """

    run: RunFile
    context: Context
    checkpoints: Checkpoints
    committed: int = 0
    log: Log = field(default=lambda _step, _figures: None)

    def __post_init__(self) -> None:
        self._tail = RecordTail(self.run.records)
        self._health = Health(self.run.recipe, self.run.attempt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, TaskError | UnavailableError):
            with say_only_after(error):
                self._commit_newest()

    def __call__(self) -> None:
        for record in self._tail.new() if self.run.peers.leads else ():
            self._health.check(record)
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
        if not self.checkpoints.under_way:  # of several meanwhile the newest will do
            self._commit_newest()

    def _commit_newest(self) -> None:
        """Begin to commit the newest checkpoint, if that has not been done."""
        newest = newest_checkpoint(self.run)
        if newest is not None and newest[0] > self.committed:
            self._begin(*newest)

    def _begin(self, step: int, state: Path) -> None:
        """Commit the checkpoint with the records up to its step; hard links keep it while OpenRLHF goes on."""
        self.committed = step
        copy = self.run.folder / f"committing-{step}"
        shutil.copytree(state, copy / "state", copy_function=os.link)
        if self.run.peers.leads:
            lines = self.run.records.read_text().splitlines(keepends=True)
            (copy / "steps.jsonl").write_text("".join(lines[:step]))
        else:  # OpenRLHF removes old ones where its first process is, and only there
            for older in state.parent.glob("global_step*"):
                if int(older.name.removeprefix("global_step")) < step:
                    shutil.rmtree(older)
        self.checkpoints.begin(step, copy)


def _collect(run: RunFile, steps: Sequence[PlannedStep], selected: Selected, out: Path) -> StageResult:
    records = RecordTail(run.records).new()
    check_order(planned_places(steps, selected.ids), seen_places(records))
    pq.write_table(order_table(records), out / "order.parquet")
    pq.write_table(losses_table(records), out / "losses.parquet")
    pq.write_table(rewards_table(records), out / "rewards.parquet")
    return StageResult(metrics={**metrics_of(records), "skipped": selected.skipped})

"""How much each stage does and how long that takes: rows, generations, disk, GPU-hours. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from egt_operator import cost
from egt_operator.api import EGTRunSpec, EvaluateStage, ProbeStage
from egt_operator.geometry import Geometry
from egt_operator.gpus import Offer
from egt_operator.stage_memory import ROLLOUTS_AT_ONCE, engine_of, rl_length, trainable_of
from egt_pipeline.contract.data import DataSource
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Metric


@dataclass(frozen=True)
class Rows:
    """Usable rows of each kind of data; None: not known before prepare has read them."""

    sft: int | None
    rl: int | None
    evaluate: int | None


@dataclass(frozen=True)
class Between:
    """A figure that lies between two."""

    low: float
    high: float


def rows_of(spec: EGTRunSpec, prepared: Mapping[str, Metric]) -> Rows:
    """From the metrics of prepare where it has run, else the most that maxRows lets in."""

    def count(name: str, source: DataSource) -> int | None:
        found = prepared.get(f"{name}.ok")
        return int(found) if found is not None else source.max_rows

    held_out = [count(f"evaluate/{source.name}", source) for source in spec.data.evaluate]
    known = [rows for rows in held_out if rows is not None]
    return Rows(
        count("sft", spec.data.sft),
        count("rl", spec.data.rl),
        sum(known) if len(known) == len(held_out) else None,
    )


def kept_of(spec: EGTRunSpec, rows: int | None) -> int | None:
    """Samples that curate keeps of ``rows``, if all can be ranked and no two have the same score."""
    keep = spec.curate.keep
    if keep.top_k is not None:
        return keep.top_k if rows is None else min(keep.top_k, rows)
    if rows is None:
        return None
    if keep.share is not None:
        return int(Fraction(str(keep.share)) * rows)  # as curation: 0.29 of 100 are 29, though 0.29 * 100 = 28.999..
    return math.ceil((keep.percentile or 0) / 100 * (rows - 1))  # the ranks that lie below its place


def rl_samples(spec: EGTRunSpec, rows: int | None) -> int | None:
    """Responses that rl samples and trains on, over all epochs; short batches at the end of an epoch included."""
    kept = kept_of(spec, rows)
    if kept is None:
        return None if spec.rl.max_steps is None else spec.rl.max_steps * spec.rl.batch_size
    steps, size = -(-kept // spec.rl.batch_size), spec.rl.batch_size
    if spec.rl.max_steps is None or spec.rl.max_steps >= steps * spec.rl.epochs:
        return kept * spec.rl.epochs
    epochs, rest = divmod(spec.rl.max_steps, steps)
    return epochs * kept + min(rest * size, kept)


def generations_of(spec: EGTRunSpec, stage: StageName, rows: Rows) -> Between | None:
    """Texts that a stage has the teacher or the model write; None: not known, or none."""
    match stage:
        case StageName.DISTILL if rows.sft is not None:
            return Between(rows.sft, rows.sft * spec.distill.attempts)
        case StageName.PROBE if rows.rl is not None:
            return Between(rows.rl * spec.probe.generations, rows.rl * spec.probe.generations)
        case StageName.RL if (samples := rl_samples(spec, rows.rl)) is not None:
            return Between(samples, samples)
        case StageName.EVALUATE if rows.evaluate is not None:
            models = 2 if spec.rl.enabled else 1
            return Between(rows.evaluate * models, rows.evaluate * models)
    return None


def disk_of(spec: EGTRunSpec, stage: StageName, geometry: Geometry) -> int | None:
    """Bytes of scratch that models and checkpoints of one pod take; data and pictures come on top. None: no model.

    Model in and out 2P each. A checkpoint of DeepSpeed: weights 2P, states 12T; of sft also a loadable copy 2P; without
    DeepSpeed 4P + 8T. Two of them: the one that is resumed from or published, and the next.
    """
    model = 2 * geometry.parameters
    match stage:
        case StageName.SFT:
            states = trainable_of(geometry, spec.sft)
            deepspeed = spec.sft.zero_stage > 0
            checkpoint = 2 * model + 12 * states if deepspeed else 2 * model + 8 * states
            return model + 2 * checkpoint + (model if deepspeed else 2 * model)
        case StageName.RL:
            return 2 * model + 2 * (model + 12 * trainable_of(geometry, spec.rl))
        case StageName.PROBE:
            return model
        case StageName.EVALUATE:
            return model * (2 if spec.rl.enabled else 1)
    return None


def hours_of(spec: EGTRunSpec, stage: StageName, geometry: Geometry, offer: Offer, rows: Rows) -> Between | None:
    """GPU-hours of all GPUs together, fast end and slow end; None: not known, or no GPU is at work."""
    blocks: dict[StageName, ProbeStage | EvaluateStage] = {
        StageName.PROBE: spec.probe,
        StageName.EVALUATE: spec.evaluate,
    }
    engine = engine_of(blocks[stage], on_gpu=True) if stage in blocks else "vllm"
    ends = [_seconds(spec, stage, geometry, pace, rows) for pace in cost.paces(offer.speeds, engine)]
    if ends[0] is None or ends[1] is None:
        return None
    return Between(ends[0] / 3600, ends[1] / 3600)


def _seconds(spec: EGTRunSpec, stage: StageName, geometry: Geometry, pace: cost.Pace, rows: Rows) -> float | None:
    match stage:
        case StageName.SFT:
            steps, size = spec.sft.max_steps, spec.sft.batch_size
            samples = steps * size if steps is not None else rows.sft and rows.sft * spec.sft.epochs
            return samples and cost.training_seconds(
                geometry,
                pace,
                samples=samples,
                length=spec.sft.max_length,
                vision_trains=not spec.sft.freeze_vision,
                checkpointing=True,
            )
        case StageName.RL:
            return _rl_seconds(spec, geometry, pace, rl_samples(spec, rows.rl))
        case StageName.PROBE | StageName.EVALUATE:
            block = spec.probe if stage is StageName.PROBE else spec.evaluate
            found = generations_of(spec, stage, rows)
            if found is None:
                return None
            return cost.generation_seconds(
                geometry,
                pace,
                samples=int(found.high),
                prompt=spec.rl.max_prompt_tokens,
                new=block.max_new_tokens,
                at_once=block.batch_size,
                b=2,
            )
    return None


def _rl_seconds(spec: EGTRunSpec, geometry: Geometry, pace: cost.Pace, samples: int | None) -> float | None:
    """Rollouts, their log-probabilities (and the reference model's), and training, one after the other."""
    if samples is None:
        return None
    block, length = spec.rl, rl_length(spec)
    on_each = max(1, block.batch_size // block.processes)
    rollouts = cost.generation_seconds(
        geometry,
        pace,
        samples=samples,
        prompt=block.max_prompt_tokens,
        new=block.max_new_tokens,
        at_once=min(ROLLOUTS_AT_ONCE, on_each),
        b=2,
    )
    models = 2 if block.kl_coefficient > 0 else 1
    scoring = models * cost.scoring_seconds(geometry, pace, samples=samples, length=length)
    trains = not block.freeze_vision
    training = cost.training_seconds(
        geometry, pace, samples=samples, length=length, vision_trains=trains, checkpointing=True
    )
    return rollouts + scoring + training

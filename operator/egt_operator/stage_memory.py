"""The memory of one process of each stage that runs a model, phase by phase, from its recipe. Pure."""

from dataclasses import dataclass
from typing import Literal

from egt_operator import formulas, generation_memory, memory
from egt_operator.api import EGTRunSpec, EvaluateStage, ProbeStage, RLStage, SFTStage
from egt_operator.formulas import Terms, VllmParts
from egt_operator.generation_memory import Prompts
from egt_operator.geometry import Geometry
from egt_operator.memory import Memory, MicroBatch, Sharding, Training
from egt_pipeline.contract.graph import StageName

# What the stages are run with; tests/operator/test_stage_memory.py compares them with the pipeline's own.
SFT_BUCKET = 50_000_000  # elements reduced together, twice as communication overlaps
RL_BUCKET = 500_000_000  # DeepSpeed's default, which OpenRLHF keeps
ROLLOUT_SHARE = 0.5  # of a GPU, that vLLM takes beside the actor
VLLM_SHARE = 0.92  # of a GPU, that vLLM takes alone: its own default
ROLLOUTS_AT_ONCE = 256  # sequences an engine of rollouts works on: set by the pipeline
_CPU_CACHE = 2**30  # of a rollout engine without a GPU
VLLM_PREFILL_TOKENS = 8192  # computed together, however many wait: set by the pipeline
# Of the largest picture that the published models take (12,845,056 pixels, 784 a token): vLLM encodes one as it starts
# on a GPU, and later as many pictures at once as have no more tokens.
_PICTURE_TOKENS = 16_384
_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Room:
    """Where a process runs: on a GPU or not, and the bytes of that GPU, where they are known."""

    on_gpu: bool
    gpu_bytes: int | None = None

    @property
    def overhead(self) -> int:
        """What the GPU holds besides tensors."""
        return memory.OVERHEAD if self.on_gpu else 0


@dataclass(frozen=True)
class Phase:
    """One peak of a stage's processes; ``needs`` is the smallest GPU, in bytes, that would do."""

    stage: StageName
    name: Literal["training", "rollouts", "generation"]
    memory: Memory
    needs: int
    terms: Terms


def ranks_of(block: SFTStage | RLStage) -> int:
    """Processes that share the states of a training."""
    return block.processes


def trainable_of(geometry: Geometry, block: SFTStage | RLStage) -> int:
    """T: weights that train: those of the adapters where there are some."""
    if block.lora is not None:
        return geometry.adapter_parameters(block.lora.rank, block.lora.targets)
    return geometry.language_parameters if block.freeze_vision else geometry.parameters


def phases_of(spec: EGTRunSpec, stage: StageName, geometry: Geometry, room: Room) -> list[Phase]:
    """The peaks of a stage's processes; none for stages that run no model."""
    match stage:
        case StageName.SFT:
            return [_training(stage, _sft(spec, geometry, room), room)]
        case StageName.RL:
            training = _training(stage, _rl(spec, geometry, room), room, _references(spec))
            return [training, _rollouts(spec, geometry, room)]
        case StageName.PROBE | StageName.EVALUATE:
            return [_generation(spec, stage, geometry, room)]
    return []


def _training(stage: StageName, made: Training, room: Room, references: int = 0) -> Phase:
    """With as many ``references`` beside it, divided as its own weights are."""
    sharded = made.sharding.stage == 3
    beside = references * 2 * made.geometry.parameters // (made.sharding.ranks if sharded else 1)
    found = memory.training(made).plus(weights=beside, overhead=room.overhead)
    terms = formulas.training(made, formulas.copies(references, sharded=sharded), on_gpu=room.on_gpu)
    return Phase(stage, "training", found, found.total, terms)


def _adapter_bytes(block: SFTStage | RLStage) -> int:
    """As DeepSpeed keeps all weights, else float32; 0 without adapters."""
    if block.lora is None:
        return 0
    if isinstance(block, RLStage):
        return 2
    return _BYTES[block.precision] if block.zero_stage else 4


def _adapters(geometry: Geometry, block: SFTStage | RLStage) -> int:
    return memory.adapters_kept(geometry, block.lora.rank, _adapter_bytes(block)) if block.lora else 0


def sft_batch(spec: EGTRunSpec, geometry: Geometry) -> MicroBatch:
    """The largest micro-batch of sft: each of its samples as long as accepted, nothing but pictures, or nothing but
    response.

    Logits go from the end of the shortest prompt to that of the longest sample, in all samples alike. Only maxLength
    bounds that: ``distill.maxTokens`` counts by the teacher's tokenizer, and a response may come with the data.
    """
    block, samples = spec.sft, _samples(spec.sft)
    return MicroBatch(
        samples=samples,
        length=block.max_length,
        logits=block.max_length,
        logit_bytes=memory.SFT_LOGIT_BYTES,
        patches=4 * samples * block.max_length,
        adapters=_adapters(geometry, block),
    )


def _samples(block: SFTStage | RLStage) -> int:
    return min(block.micro_batch_size, -(-block.batch_size // ranks_of(block)))


def _sft(spec: EGTRunSpec, geometry: Geometry, room: Room) -> Training:
    block, b = spec.sft, _BYTES[spec.sft.precision]
    return Training(
        geometry,
        Sharding(block.zero_stage, ranks_of(block), SFT_BUCKET, buckets=2 if room.on_gpu else 1),
        sft_batch(spec, geometry),
        trainable=trainable_of(geometry, block),
        b=b,
        # Without DeepSpeed weights that train are float32, and cast as they are used.
        held=b if block.zero_stage or block.lora else 4,
        checkpointing=block.gradient_checkpointing,
        vision_trains=not block.freeze_vision,
        adapter_bytes=_adapter_bytes(block),
    )


def _rl(spec: EGTRunSpec, geometry: Geometry, room: Room) -> Training:
    block, samples, length = spec.rl, _samples(spec.rl), rl_length(spec)
    patches, adapters = 4 * samples * block.max_prompt_tokens, _adapters(geometry, block)
    return Training(
        geometry,
        Sharding(block.zero_stage, ranks_of(block), RL_BUCKET),
        MicroBatch(samples, length, length, memory.RL_LOGIT_BYTES, patches, adapters),
        trainable=trainable_of(geometry, block),
        b=2,
        held=2,
        checkpointing=room.on_gpu,
        vision_trains=not block.freeze_vision,
        adapter_bytes=_adapter_bytes(block),
    )


def rl_length(spec: EGTRunSpec) -> int:
    """Tokens of the longest sample of rl; all of them get logits."""
    return spec.rl.max_prompt_tokens + spec.rl.max_new_tokens


def _references(spec: EGTRunSpec) -> int:
    """Models that the KL penalty compares with; what one gathers is gone before the actor gathers."""
    return 0 if spec.rl.kl_coefficient == 0 else 1


def _rollouts(spec: EGTRunSpec, geometry: Geometry, room: Room) -> Phase:
    """vLLM on its share of the GPU, beside the weights of the sleeping actor, whose optimiser lies in host memory."""
    models, sharded = 1 + _references(spec), spec.rl.zero_stage == 3
    actor = models * _copy(spec, geometry)
    logits = generation_memory.rollout_logits(geometry, ROLLOUTS_AT_ONCE, 2)
    found, needs, work = _vllm(geometry, _Engine(ROLLOUT_SHARE, rl_length(spec), ROLLOUTS_AT_ONCE, logits), room)
    beside = (actor + room.overhead) / (1 - ROLLOUT_SHARE)
    held = found.plus(weights=actor, overhead=room.overhead)
    copies = formulas.copies(models, sharded=sharded)
    parts = VllmParts(formulas.ROLLOUT_LOGITS, _pool(room), copies, shares=room.on_gpu)
    terms = formulas.vllm(geometry, parts, {**work, "N": ranks_of(spec.rl)})
    return Phase(StageName.RL, "rollouts", held, max(needs, int(beside)), terms)


def _copy(spec: EGTRunSpec, geometry: Geometry) -> int:
    """Weights of one more model in rl, as far as they lie on one rank."""
    return 2 * geometry.parameters // (ranks_of(spec.rl) if spec.rl.zero_stage == 3 else 1)


@dataclass(frozen=True)
class _Engine:
    """vLLM on ``share`` of a GPU: ``at_once`` sequences of at most ``longest`` tokens; ``logits`` bytes of a step."""

    share: float
    longest: int
    at_once: int
    logits: int
    b: int = 2


def _pool(room: Room) -> str:
    return formulas.vllm_pool(on_gpu=room.on_gpu, known=room.gpu_bytes is not None)


def _vllm(geometry: Geometry, engine: _Engine, room: Room) -> tuple[Memory, int, dict[str, float]]:
    """What weights and one step leave of its share is cache, one sample's at the least; the GPU that would do; and the
    symbols of its formulas.
    """
    fixed, pictures = engine.b * geometry.parameters, max(VLLM_PREFILL_TOKENS, _PICTURE_TOKENS)
    step = generation_memory.vllm_activations(geometry, VLLM_PREFILL_TOKENS, pictures, engine.logits, engine.b)
    one = generation_memory.kv_cache(geometry, engine.longest, engine.b)
    pool = one if room.on_gpu else _CPU_CACHE
    if room.gpu_bytes is not None:
        pool = max(one, int(engine.share * room.gpu_bytes) - fixed - step)
    needs = int((fixed + step + one) / engine.share)
    work = {"b": engine.b, "s": engine.at_once, "m": engine.longest, "u": engine.share}
    work |= {"f": VLLM_PREFILL_TOKENS, "v": pictures}
    return Memory(fixed, activations=step, kv_cache=pool), needs, work | {"G": room.gpu_bytes or 0}


def engine_of(block: ProbeStage | EvaluateStage, *, on_gpu: bool) -> Literal["transformers", "vllm"]:
    """Which engine generates there."""
    if block.engine == "auto":
        return "vllm" if on_gpu else "transformers"
    return block.engine


def _generation(spec: EGTRunSpec, stage: StageName, geometry: Geometry, room: Room) -> Phase:
    block = spec.probe if stage is StageName.PROBE else spec.evaluate
    b, prompt = _BYTES[block.precision], spec.rl.max_prompt_tokens
    if engine_of(block, on_gpu=room.on_gpu) == "vllm":
        sampled = isinstance(block, ProbeStage) and block.generations > 1
        how = {"sampled": sampled, "casts_head": b == 2 and not room.on_gpu}
        logits = generation_memory.probe_logits(geometry, block.batch_size, **how)
        engine = _Engine(VLLM_SHARE, prompt + block.max_new_tokens, block.batch_size, logits, b)
        found, needs, work = _vllm(geometry, engine, room)
        parts = VllmParts(formulas.probe_logits(**how), _pool(room))
        return Phase(stage, "generation", found, needs, formulas.vllm(geometry, parts, work))
    prompts = Prompts(block.batch_size, prompt, block.max_new_tokens, patches=4 * block.batch_size * prompt)
    found = generation_memory.generation(geometry, prompts, b).plus(overhead=room.overhead)
    terms = formulas.generation(geometry, prompts, b, on_gpu=room.on_gpu)
    return Phase(stage, "generation", found, found.total, terms)

"""``python tests/memory_peaks.py KIND``: what the real code allocates at its peak as it trains, one JSON line a case.

generation_peaks.py does the same for what generates.
In a process of its own, as OpenRLHF and DeepSpeed on CPU change torch, and a group of processes is pretended.
Models of 7B are fake tensors: every operation says what it would allocate, and nothing is.
"""

import os
import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from allocations import Peak, config_of, model_of, tell

RANKS = 4
_BUCKET = 100_000  # of a small model the usual one would be all of it
SMALL = {"hidden": 256, "layers": 6, "heads": 8, "kv": 2, "intermediate": 1024, "vocabulary": 4096, "tied": False}
WIDE = {"hidden": 512, "layers": 3, "heads": 16, "kv": 16, "intermediate": 2048, "vocabulary": 1024, "tied": False}
TIED = {"hidden": 256, "layers": 3, "heads": 8, "kv": 2, "intermediate": 512, "vocabulary": 16384, "tied": True}
SEVEN = {"hidden": 3584, "layers": 28, "heads": 28, "kv": 4, "intermediate": 18944, "vocabulary": 152064, "tied": False}


def activations(shape: dict[str, Any], kind: str, samples: int, length: int, logits: int, **how: Any) -> None:
    """Forward and backward of one micro-batch, through the loss of ``kind``; gradients leave as they come."""
    checkpointing, dtype = how.get("checkpointing", True), how.get("dtype", torch.bfloat16)
    config = config_of(shape)
    with FakeTensorMode():
        model = model_of(config, dtype)
        model.model.visual.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(lambda it: setattr(it, "grad", None))
        with Peak(*model.parameters(), *model.buffers()) as peak:
            ids, positions = torch.zeros(samples, length, dtype=torch.long), torch.zeros(3, samples, length).long()
            inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
            loss_of = {"sft": _sft_loss, "rl": _rl_loss}[kind]
            loss_of(model, inputs, logits).backward()
    case = {"samples": samples, "length": length, "logits": logits, "checkpointing": checkpointing}
    tell(config.to_dict(), kind, b=dtype.itemsize, peak=peak.most, **case)


def _sft_loss(model: Any, inputs: dict[str, Any], logits: int) -> Any:
    from egt_pipeline.sft_train import _loss

    samples, length = inputs["input_ids"].shape
    output = model(**inputs, logits_to_keep=torch.arange(length - logits, length))
    return _loss(output, torch.zeros(samples, logits, dtype=torch.long), torch.tensor(7))


def _rl_loss(model: Any, inputs: dict[str, Any], _logits: int) -> Any:
    """As OpenRLHF's Actor.forward: logits in float32, then the log-probabilities of all tokens."""
    from openrlhf.models.utils import log_probs_from_logits

    output = model(**inputs)
    output["logits"] = output["logits"].to(torch.float32)
    return log_probs_from_logits(output["logits"], inputs["input_ids"]).sum()


def adapters(shape: dict[str, Any], rank: int, *, deepspeed: bool) -> None:
    """As ``activations`` of sft, with adapters: in bfloat16 as DeepSpeed has them, else in float32 under autocast."""
    from egt_pipeline.adapters import adapted
    from egt_pipeline.contract.training import LoRA

    config, length, logits = config_of(shape), 1024, 8
    model = adapted(model_of(config, torch.bfloat16), LoRA(rank=rank), None)
    if deepspeed:
        model = model.to(torch.bfloat16)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.register_post_accumulate_grad_hook(lambda it: setattr(it, "grad", None))
    with Peak(*model.parameters(), *model.buffers()) as peak:
        ids, positions = torch.zeros(1, length, dtype=torch.long), torch.zeros(3, 1, length).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=not deepspeed):
            loss = _sft_loss(model, {"input_ids": ids, "position_ids": positions, "use_cache": False}, logits)
        loss.backward()
    case = {"rank": rank, "adapter_bytes": trained[0].element_size(), "trained": sum(it.numel() for it in trained)}
    tell(config.to_dict(), "adapters", length=length, logits=logits, **case, peak=peak.most)


def vision(depth: int, hidden: int, intermediate: int, *, trains: bool) -> None:
    """The vision tower, as the model calls it, on two pictures of 32 x 32 patches."""
    config, patches = config_of(SMALL, depth, hidden, intermediate), 2 * 32 * 32
    model = model_of(config, torch.bfloat16).model
    tower = model.visual.requires_grad_(trains)
    if trains:
        tower.gradient_checkpointing_enable({"use_reentrant": False})
        for weight in tower.parameters():
            weight.register_post_accumulate_grad_hook(lambda it: setattr(it, "grad", None))
    with Peak(*tower.parameters(), *tower.buffers()) as peak:
        pixels = torch.zeros(patches, 1176)  # the batch holds them to its end
        output = model.get_image_features(pixels, torch.tensor([[1, 32, 32]] * 2))
        if trains:
            torch.cat(list(output.pooler_output)).float().sum().backward()
    tell(config.to_dict(), "vision", trains=trains, patches=patches, peak=peak.most)


def zero(shape: dict[str, Any], stage: int) -> None:
    """Rank 0 of RANKS under DeepSpeed as sft configures it: what is held after steps, and the peak of a step."""
    import deepspeed

    from egt_pipeline.contract.recipes import SFTRecipe
    from egt_pipeline.sft_train import _deepspeed

    settings = _deepspeed(SFTRecipe(zero_stage=stage), cuda=False)
    settings["zero_optimization"]["reduce_bucket_size"] = _BUCKET
    settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0}
    settings["bf16"] = {"enabled": True}
    config = config_of(shape)
    with Peak() as peak:
        model = model_of(config, torch.bfloat16)
        model.model.visual.requires_grad_(False)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, fused=True)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)
        for _ in range(4):
            peak.most = peak.now
            engine.backward(engine(input_ids=torch.zeros(1, 32, dtype=torch.long), use_cache=False).logits.mean())
            engine.step()
    tell(config.to_dict(), "zero", stage=stage, ranks=RANKS, bucket=_BUCKET, held=peak.now, peak=peak.most)
    engine.destroy()


def pretend_ranks() -> None:
    """A process group of RANKS in which nobody else is: nothing is sent, and every tensor has its size."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(RANKS))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)


def main(kind: str) -> None:
    match kind:
        case "sft":
            activations(SMALL, "sft", 2, 256, 64)
            activations(WIDE, "sft", 1, 16384, 8)
            activations(TIED, "sft", 4, 2048, 128)
            activations(WIDE, "sft", 1, 4096, 512, checkpointing=False)
            activations(SMALL, "sft", 2, 4096, 64, checkpointing=False, dtype=torch.float32)
            activations(SEVEN, "sft", 1, 8192, 64)
            activations(SEVEN, "sft", 1, 8192, 4096)
        case "rl":
            import egt_pipeline.openrlhf_entry  # noqa: F401  # prepares the process

            activations(SMALL, "rl", 2, 512, 512)
            activations(WIDE, "rl", 1, 16384, 16384)
            activations(SEVEN, "rl", 1, 5120, 5120)
        case "adapters":
            for deepspeed in (True, False):
                adapters(SMALL, 16, deepspeed=deepspeed)
                adapters(SMALL, 64, deepspeed=deepspeed)
                adapters(WIDE, 16, deepspeed=deepspeed)
        case "vision":
            for trains in (False, True):
                vision(2, 128, 256, trains=trains)
                vision(2, 128, 1024, trains=trains)
                vision(4, 256, 512, trains=trains)
        case "zero":
            pretend_ranks()
            for stage in (2, 3):
                for shape in (SMALL, WIDE, TIED):
                    zero(shape, stage)


if __name__ == "__main__":
    main(sys.argv[1])

"""One training process of the sft stage: transformers' Trainer, with DeepSpeed ZeRO where the recipe asks for it.

``python -m egt_pipeline.sft_train FILE`` is what torchrun starts in every process; without DeepSpeed and with one
process the stage calls ``train`` itself. Losses do not depend on the number of processes: every batch is the same set
of samples (``sft_batches.Order``), and its loss is the mean over the response tokens of all of it.
"""

import math
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.loss.loss_utils import ForCausalLMLoss

from egt_pipeline.adapters import ADAPTER_FOLDER, adapted
from egt_pipeline.contract.errors import EgtError, TaskError, excerpt
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.deepspeed_checkpoints import allow_their_classes
from egt_pipeline.deepspeed_on_cpu import without_cuda
from egt_pipeline.gpus import no_room
from egt_pipeline.orphans import die_with_parent
from egt_pipeline.preferences import Images
from egt_pipeline.reward_model import MODEL_FOLDER, load_model, load_processor
from egt_pipeline.sft_batches import Collator, Numbers, Order, RankBatches, Shares, plan_order
from egt_pipeline.sft_job import LOSSES_FILE, Event, Job, Report
from egt_pipeline.sft_samples import Sample, read_samples

_BUCKET_ELEMENTS = 50_000_000  # gradients reduced together: 200 MB in float32, where the default of 5e8 takes 2 GB
_SAID = 900  # characters: several processes write to one FIFO, which keeps lines of up to 4,096 bytes whole
LOSSES = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("grad_norm", pa.float64()),
        ("learning_rate", pa.float64()),
        ("samples", pa.int64()),
        ("response_tokens", pa.int64()),
    ]
)


def train(job: Job, report: Report, stopping: Callable[[], bool]) -> None:
    """Train until the last step, or until ``stopping``; then a checkpoint is the last thing reported.

    Raises TaskError when the loss is no number any more.
    """
    samples = read_samples(job.samples)
    order = plan_order(job.recipe, len(samples))
    micro_batch = min(job.recipe.micro_batch_size, -(-order.batch_size // job.processes))
    shares = Shares(order, job.processes, micro_batch, [len(sample.tokens) for sample in samples])
    arguments = _arguments(job, shares)  # before the model: under ZeRO-3 it is loaded in parts
    processor, model = load_processor(job.model), _model(job)
    config = deepcopy(model.config)
    trainer = _Trainer(
        batches=RankBatches(shares, arguments.process_index),
        model=model,
        args=arguments,
        train_dataset=Numbers(len(samples)),
        data_collator=Collator(samples, processor, Images(job.images)),
        compute_loss_func=_loss,
        callbacks=[_Watch(job.recipe, report, stopping)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    if trainer.state.global_step < order.steps:
        return
    model.config = config  # without what the Trainer wrote into it
    folder = job.out / (ADAPTER_FOLDER if job.recipe.lora else MODEL_FOLDER)
    trainer.save_model(str(folder))
    if arguments.process_index == 0:
        (folder / "training_args.bin").unlink()  # a pickle, and of no use to a reader
        if not job.recipe.lora:
            processor.save_pretrained(folder)
        pq.write_table(_losses(trainer.state.log_history, order, samples), job.out / LOSSES_FILE)


def _model(job: Job) -> Any:
    """The model to train; DeepSpeed brings a checkpoint's weights itself."""
    recipe, resume = job.recipe, None if job.recipe.zero_stage else job.resume
    if recipe.lora:
        set_seed(recipe.seed)  # of the adapters' first weights
        # What is frozen needs no more bits than it is used with; peft keeps the adapters in float32.
        return adapted(load_model(job.model, recipe.precision), recipe.lora, resume)
    model = load_model(resume or job.model, recipe.precision if recipe.zero_stage else "float32")
    if recipe.freeze_vision:
        model.model.visual.requires_grad_(False)
    return model


def _arguments(job: Job, shares: Shares) -> TrainingArguments:
    recipe, cuda = job.recipe, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(job.checkpoints),
        per_device_train_batch_size=shares.micro_batch,
        gradient_accumulation_steps=shares.accumulation,
        max_steps=shares.order.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.min_learning_rate_share},
        warmup_steps=recipe.warmup_steps,
        optim="adamw_torch_fused",  # torch's own kernel, on CPU too; DeepSpeed's would be compiled on first use
        adam_beta1=recipe.adam_betas[0],
        adam_beta2=recipe.adam_betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bfloat16",
        seed=recipe.seed,
        deepspeed=_deepspeed(recipe, cuda) if recipe.zero_stage else None,
        use_cpu=not cuda,
        ddp_backend=("nccl" if cuda else "gloo") if "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # the other kind needs inputs that have gradients
        dataloader_pin_memory=cuda,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would report the mean of earlier losses in place of a NaN
        save_strategy="no",  # _Watch decides
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _deepspeed(recipe: SFTRecipe, cuda: bool) -> dict[str, Any]:
    allow_their_classes()
    if not cuda:
        without_cuda(import_module("deepspeed.comm.torch"))
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": recipe.zero_stage,
            "overlap_comm": cuda,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            # Without it ZeRO-3 would save no weights that transformers can load.
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer that takes its micro-batches in our order instead of sampling them."""

    def __init__(self, *, batches: RankBatches, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._batches = batches

    def get_train_dataloader(self) -> DataLoader[int]:
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _load_from_checkpoint(self, *_: Any) -> None:
        # The Trainer would look for weights by names that Qwen2.5-VL is not saved under, warn, and go on without them.
        # ``train`` has loaded the model from the checkpoint.
        pass


def _loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """The sum over this micro-batch divided by the response tokens of the whole batch, of all processes (EGT eq. 2)."""
    vocabulary = outputs.logits.shape[-1]
    loss: torch.Tensor = ForCausalLMLoss(outputs.logits, labels, vocabulary, num_items_in_batch=num_items_in_batch)
    return loss


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports steps, and decides when a checkpoint is written and when training ends."""

    def __init__(self, recipe: SFTRecipe, report: Report, stopping: Callable[[], bool]) -> None:
        self._recipe, self._report, self._stopping = recipe, report, stopping

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            return
        stop = _of_process_0(self._stopping())
        control.should_training_stop = stop
        control.should_save = stop or state.global_step % self._recipe.checkpoint_steps == 0

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        if (loss := logs.get("loss")) is None:
            return  # the summary at the end
        if not math.isfinite(loss):
            raise TaskError(f"sft: the loss of step {state.global_step} is {loss}; lower sft.learningRate")
        others = {name: logs.get(name) for name in ("grad_norm", "learning_rate")}
        self._report(Event(step=state.global_step, steps=state.max_steps, loss=loss, **others))

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # a checkpoint is complete once every process has written its part
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        self._report(Event(step=state.global_step, steps=state.max_steps, checkpoint=folder))


def _of_process_0(value: bool) -> bool:
    """``value`` as process 0 has it, so that all of them take the same turn."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = torch.tensor([int(value)], device=device)
    torch.distributed.broadcast(shared, 0)
    return bool(shared.item())


def _losses(history: list[dict[str, Any]], order: Order, samples: list[Sample]) -> pa.Table:
    """One row an optimiser step. The history reaches back before a resumed checkpoint: the checkpoint holds it."""
    rows = []
    for entry in (entry for entry in history if "loss" in entry):
        batch = [samples[number] for number in order.batch(entry["step"] - 1)]
        tokens = sum(len(sample.tokens) - sample.prompt_tokens for sample in batch)
        rows.append({**entry, "samples": len(batch), "response_tokens": tokens})
    return pa.Table.from_pylist(rows, schema=LOSSES)


def main(path: Path) -> int:
    """Run one process of the job in ``path``; its exit code. The first of each pod reports, and any that fails."""
    die_with_parent()  # a rank that waits for a dead one would wait for ever
    job, first = Job.model_validate_json(path.read_bytes()), int(os.environ["LOCAL_RANK"]) == 0
    with job.events.open("w", buffering=1) as stream:

        def report(event: Event) -> None:
            stream.write(event.model_dump_json() + "\n")

        try:
            train(job, report if first else lambda _: None, job.stop.exists)
        except Exception as error:
            failed = error if isinstance(error, EgtError) else no_room("sft", error)
            if failed is None:
                raise
            report(Event(step=0, steps=0, failed=excerpt(str(failed), _SAID), exit_code=failed.exit_code))
            return failed.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

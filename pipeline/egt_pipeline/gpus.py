"""What a stage says of its GPUs: that it sees fewer than it was promised, or that they have no room."""

import sys

from egt_pipeline.contract.errors import EgtError, TaskError

_KNOBS = {
    "sft": "sft.microBatchSize or sft.maxLength",
    "probe": "probe.batchSize or probe.maxNewTokens",
    "rl": "rl.microBatchSize, rl.maxPromptTokens or rl.maxNewTokens",
    "evaluate": "evaluate.batchSize or evaluate.maxNewTokens",
}


def check_gpus(promised: int) -> None:
    """Raises EgtError when torch can use fewer: without its driver a stage would go on without any, for weeks."""
    if not promised:
        return
    import torch

    # Where the driver is too old for this CUDA, devices are counted all the same.
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable < promised:
        raise EgtError(
            f"{promised} GPUs were promised and {usable} can be used: look at the node's device plugin and its driver, "
            f"which has to know CUDA {torch.version.cuda}"
        )


def no_room(stage: str, error: BaseException) -> TaskError | None:
    """The error to end with when ``error`` says that a GPU is full, None for any other."""
    torch = sys.modules.get("torch")  # where it was never imported, nothing can have filled a GPU
    reason = getattr(error, "cause", error)  # Ray wraps what a worker raised
    if torch is None or not isinstance(reason, torch.OutOfMemoryError):
        return None
    # Its first three sentences: that it is full, what was asked for, and how much the GPU has.
    said = ". ".join(str(reason).split(". ")[:3]).rstrip(".")
    knobs = _KNOBS.get(stage, "the sizes of its batches")
    return TaskError(f"{stage}: a GPU has no room: {said}; lower {knobs}, or take larger GPUs: egt plan says what fits")

"""DeepSpeed's checkpoints come from the store, so they are read without unpickling anything but what is named here.

DeepSpeed asks ``torch.load`` for everything; the variable overrules it in the whole process.
"""

WEIGHTS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


def allow_their_classes() -> None:
    """All that DeepSpeed's checkpoints hold besides tensors and plain values may be loaded in this process."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])

"""What DeepSpeed takes for granted of NCCL and gloo does not give. Only on machines without CUDA."""

from typing import Any


def without_cuda(communication: Any) -> None:
    """Change ``communication``, the module deepspeed.comm.torch, so that its collectives are right and start soon."""
    # Two minutes of g++ for an optional speed-up.
    communication.build_shm_op = lambda: None
    _complete_gathers(communication.TorchBackend)


def _complete_gathers(backend: Any) -> None:
    """Have every all-gather be over when it returns.

    ZeRO-3 starts one for each parameter and waits for the last only. NCCL works in order, gloo's threads do not: now
    and then a parameter was used before it had arrived (three of five runs gave wrong losses).
    """
    begin = backend.all_gather_into_tensor

    def all_gather_into_tensor(self: Any, *arguments: Any, **named: Any) -> Any:
        handle = begin(self, *arguments, **named)
        if handle is not None:
            handle.wait()
        return handle

    backend.all_gather_into_tensor = all_gather_into_tensor

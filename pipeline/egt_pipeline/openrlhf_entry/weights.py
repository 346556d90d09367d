"""The vLLM worker's side of the weight sync: new weights in, nothing computed from the old ones left."""

import datetime
from typing import TYPE_CHECKING, Any

import torch

from egt_pipeline.openrlhf_entry.machine import has_cuda, install
from egt_pipeline.orphans import die_with_parent

_PATIENCE = datetime.timedelta(minutes=5)  # the other side may still be loading the model


class GlooBroadcast:
    """Broadcasts from rank 0 over TCP, with the one method OpenRLHF uses of vLLM's NCCL communicator."""

    def __init__(self, address: str, port: int, rank: int, world: int) -> None:
        from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

        store = TCPStore(address, port, world, rank == 0, timeout=_PATIENCE, wait_for_workers=False)
        self._group: Any = ProcessGroupGloo(store, rank, world, _PATIENCE)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:  # noqa: ARG002
        """Send ``tensor`` from rank ``src``, or receive into it; returns when that is done."""
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor.contiguous()], options).wait()


class _CpuWorker:
    """Worker extension on CPU: linear layers are packed once loaded, so all weights are reloaded in one go."""

    model_runner: Any

    def init_process_group(
        self, address: str, port: int, offset: int, world: int, _name: str, _backend: str, _ray: bool
    ) -> None:
        """Join the group of the actor's first process."""
        self._group = GlooBroadcast(address, port, torch.distributed.get_rank() + offset, world)
        self._received: list[tuple[str, torch.Tensor]] = []

    def update_weight(self, name: str, dtype: torch.dtype, shape: torch.Size, last: bool = False) -> None:
        """Receive one tensor; with the last one, load them all."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        self._group.broadcast(tensor, 0)
        self._received.append((name, tensor))
        if last:
            received, self._received = self._received, []
            self.model_runner.reload_weights(weights_iterator=iter(received))


if has_cuda() and not TYPE_CHECKING:
    install()  # vLLM's engine process imports this module before anything of OpenRLHF
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap as _Worker
else:
    _Worker = _CpuWorker


class WorkerExtension(_Worker):
    """What vLLM mixes into its worker."""

    def init_process_group(self, *arguments: Any, **named: Any) -> None:
        """Join the group of the actor's first process; from then on, do not outlive the engine."""
        die_with_parent()
        super().init_process_group(*arguments, **named)

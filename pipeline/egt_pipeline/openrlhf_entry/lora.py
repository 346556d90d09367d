"""Adapters in the actor, whole weights in vLLM, where OpenRLHF would send the adapters themselves.

Each weight is merged while it is sent and is its own again afterwards, so nothing is rounded twice and no second copy
of the model is needed. DeepSpeed's gathering of a parameter, which stands around the sending, is where that happens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from peft.tuners.lora import LoraLayer

_ADAPTER = "default"  # peft's name of the only one


class _Merging(deepspeed.zero.GatheredParameters):  # type: ignore[misc]
    """Gathers one weight, with its adapter in it until the end of the block."""

    layers: dict[int, Any]  # of the weights that have an adapter, by id

    def __init__(self, params: list[torch.nn.Parameter], *, enabled: bool) -> None:
        (self._weight,) = params
        self._layer = self.layers.get(id(self._weight))
        super().__init__([*params, *(_factors(self._layer) if self._layer else [])], enabled=enabled)

    def __enter__(self) -> None:
        super().__enter__()
        self._own = self._weight.data
        if self._layer:
            self._weight.data = self._own + self._layer.get_delta_weight(_ADAPTER).to(self._own.dtype)

    def __exit__(self, *error: object) -> None:
        self._weight.data = self._own
        super().__exit__(*error)


def _factors(layer: Any) -> list[torch.nn.Parameter]:
    return [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]


@contextmanager
def whole_weights(actor: Any) -> Iterator[Any]:
    """What OpenRLHF's weight sync takes for the actor within the block: a model without adapters, as trained so far.

    It has the weights that a run without adapters sends: all but those of the vision tower, which is frozen.
    """
    model = actor.model.module.get_base_model()
    layers = {id(m.base_layer.weight): m for m in model.modules() if isinstance(m, LoraLayer)}
    weights = [
        (name.replace(".base_layer.", "."), weight)
        for name, weight in model.named_parameters()
        if "lora_" not in name and ("language_model" in name or "lm_head" in name)
    ]
    plain = SimpleNamespace(named_parameters=lambda: weights)
    gathering = deepspeed.zero.GatheredParameters
    deepspeed.zero.GatheredParameters = type("Merging", (_Merging,), {"layers": layers})
    try:
        yield SimpleNamespace(model=SimpleNamespace(module=plain))
    finally:
        deepspeed.zero.GatheredParameters = gathering


def save_adapter(actor: Any, folder: Path) -> None:
    """Write the adapter to ``folder`` as safetensors; every process of the actor calls this."""
    model = actor.model.module
    with deepspeed.zero.GatheredParameters([weight for weight in model.parameters() if weight.requires_grad]):
        if torch.distributed.get_rank() == 0:
            model.save_pretrained(folder)
    torch.distributed.barrier()

"""What OpenRLHF takes for granted and a machine may not have: CUDA, flash-attn.

``install()`` runs first in every process of a run. It changes modules as they are imported, so it costs nothing for
those that never are; on a machine with CUDA and flash-attn it changes nothing.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from egt_pipeline.deepspeed_on_cpu import without_cuda


def has_cuda() -> bool:
    """True where torch can use a GPU."""
    import torch

    return torch.cuda.is_available()


def install() -> None:
    """Prepare this process for OpenRLHF. Must come before openrlhf, deepspeed and vllm are imported."""
    if any(isinstance(finder, _Patcher) for finder in sys.meta_path):
        return
    if not has_cuda():
        os.environ.update(DS_ACCELERATOR="cpu", TORCHDYNAMO_DISABLE="1")  # compiling takes minutes, once per machine
        _promise_devices()
        sys.meta_path.insert(0, _Patcher(after=_ON_CPU))
    if importlib.util.find_spec("flash_attn") is None:
        sys.meta_path.insert(0, _Patcher(around={"openrlhf.models.ring_attn_utils": _stand_in_for_flash_attention}))


class _Device(str):
    """The device "cpu" wherever torch takes a device, and 0 in f"cuda:{device}", which is only ever compared."""

    __slots__ = ()

    def __format__(self, _spec: str) -> str:
        return "0"


def _promise_devices() -> None:
    """Functions of torch.cuda that OpenRLHF calls without a question; one each, as dynamo tells them by identity."""
    import torch

    def set_device(*_: Any) -> None: ...
    def empty_cache(*_: Any) -> None: ...
    def synchronize(*_: Any) -> None: ...
    def current_stream(*_: Any) -> None: ...
    def current_device() -> str:
        return _Device("cpu")

    for function in (set_device, empty_cache, synchronize, current_stream, current_device):
        setattr(torch.cuda, function.__name__, function)


def _deepspeed_on_cpu(module: ModuleType) -> None:
    mesh = module.init_device_mesh
    module.init_device_mesh = lambda _device, *rest, **names: mesh("cpu", *rest, **names)  # type: ignore[attr-defined]
    strategy = module.DeepspeedStrategy
    configured = strategy.get_ds_train_config

    def get_ds_train_config(self: Any, *rest: Any, **names: Any) -> dict[str, Any]:
        config: dict[str, Any] = configured(self, *rest, **names)
        if "optimizer" in config:
            config["optimizer"]["params"]["torch_adam"] = True  # three minutes of g++ for DeepSpeed's own
        return config

    strategy.get_ds_train_config = get_ds_train_config


def _gloo_instead_of_nccl(module: ModuleType) -> None:
    from egt_pipeline.openrlhf_entry.weights import GlooBroadcast

    module.stateless_init_process_group = (  # type: ignore[attr-defined]
        lambda address, port, rank, world, _device: GlooBroadcast(address, port, rank, world)
    )


_ON_CPU: dict[str, Callable[[ModuleType], None]] = {
    "deepspeed.comm.torch": without_cuda,
    "openrlhf.utils.deepspeed.deepspeed": _deepspeed_on_cpu,
    "openrlhf.utils.distributed_util": _gloo_instead_of_nccl,
}


@contextmanager
def _stand_in_for_flash_attention() -> Iterator[None]:
    """Names of flash-attn while one module imports them; only packing calls them, which vision models forbid.

    They are gone afterwards, so that nobody takes the stand-in for an installed flash-attn.
    """

    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("flash-attn is not installed, and packed samples need it")

    names = {
        "flash_attn": (),
        "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn.utils": (),
        "flash_attn.utils.distributed": ("all_gather",),
    }
    for name, functions in names.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for function in functions:
            setattr(module, function, missing)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class _Patcher(MetaPathFinder):
    """Finds modules as usual, and changes the named ones as they are imported."""

    def __init__(
        self,
        after: dict[str, Callable[[ModuleType], None]] | None = None,
        around: dict[str, Callable[[], Any]] | None = None,
    ) -> None:
        self._after, self._around = dict(after or {}), dict(around or {})

    def find_spec(self, fullname: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        after, around = self._after.pop(fullname, None), self._around.pop(fullname, None)
        if after is None and around is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Patching(spec.loader, after, around)
        return spec


class _Patching(Loader):
    def __init__(self, loader: Any, after: Any, around: Any) -> None:
        self._loader, self._after, self._around = loader, after, around

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        if self._around is not None:
            with self._around():
                self._loader.exec_module(module)
        else:
            self._loader.exec_module(module)
        if self._after is not None:
            self._after(module)

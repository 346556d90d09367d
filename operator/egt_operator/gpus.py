"""Which GPUs a run may land on, as far as its scheduling says, and what they can do. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from egt_operator.api_parts import Scheduling

PRODUCT_LABEL = "nvidia.com/gpu.product"  # set on nodes by NVIDIA's GPU feature discovery
_UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Gpu:
    """What the vendor's data sheet says: memory in GiB, dense bfloat16 TFLOP/s, memory bandwidth in TB/s."""

    memory_gib: int
    tflops: float
    bandwidth_tb: float


PRODUCTS: Mapping[str, Gpu] = {
    "NVIDIA-GeForce-RTX-4090": Gpu(24, 165, 1.01),
    "NVIDIA-L40S": Gpu(45, 362, 0.86),
    "NVIDIA-A100-SXM4-40GB": Gpu(40, 312, 1.56),
    "NVIDIA-A100-SXM4-80GB": Gpu(80, 312, 2.04),
    "NVIDIA-H20": Gpu(95, 148, 4.0),
    "NVIDIA-H100-80GB-HBM3": Gpu(80, 989, 3.35),
    "NVIDIA-H200": Gpu(140, 989, 4.8),
}


@dataclass(frozen=True)
class Offer:
    """The GPUs of a run: the known products it may land on, and the memory all of them have, in bytes.

    None: not known. ``named`` is whether the manifest says anything of its GPUs.
    """

    products: tuple[str, ...]
    memory: int | None
    origin: str
    named: bool

    @property
    def speeds(self) -> tuple[Gpu, ...]:
        """What may do the work; every known product that is large enough where none is named."""
        if self.products:
            return tuple(PRODUCTS[name] for name in self.products)
        enough = tuple(gpu for gpu in PRODUCTS.values() if gpu.memory_gib * 2**30 >= (self.memory or 0))
        return enough or tuple(PRODUCTS.values())


def offer_of(scheduling: Scheduling) -> Offer:
    """What the manifest says of its GPUs: gpuMemory, else the least of the products that nodes are chosen by."""
    chosen = [scheduling.node_selector[PRODUCT_LABEL]] if PRODUCT_LABEL in scheduling.node_selector else []
    for wanted in scheduling.node_affinity:
        if wanted.key == PRODUCT_LABEL and wanted.operator == "In":
            chosen = [name for name in wanted.values if not chosen or name in chosen]
    known = tuple(name for name in chosen if name in PRODUCTS)
    unknown = ", ".join(name for name in chosen if name not in PRODUCTS)
    beside = f"; what {unknown} holds is not known" if unknown else ""
    if scheduling.gpu_memory is not None:
        number, unit = scheduling.gpu_memory[:-2], scheduling.gpu_memory[-2:]
        return Offer(known, int(number) * _UNITS[unit], "scheduling.gpuMemory", named=True)
    if known:
        least = min(PRODUCTS[name].memory_gib for name in known)
        return Offer(known, least * 2**30, f"the least of what {PRODUCT_LABEL} allows{beside}", named=True)
    return Offer((), None, f"scheduling.gpuMemory says it, as in 80Gi{beside}", named=bool(chosen))

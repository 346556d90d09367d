"""What has to be known before vLLM is imported: the variables it reads, and what our requests are marked by."""

import importlib.metadata
import os

from egt_pipeline.contract.errors import TaskError

PINNED = "0.29.0"  # what OpenRLHF 0.11.2 pins too
# Computed together, however many wait; `egt plan` counts a GPU's memory with it. Set, as vLLM's default goes by how and
# where it is started: 2,048 for ours, and up to 16,384 for its others.
PREFILL_TOKENS = 8192
ASK = "egt"  # our key among a request's extra arguments
VLLM_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns at every weight sync of layers that have no weights
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
VLLM_WITHOUT_GPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine works itself instead of through one process more
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; enough for the small models that run without a GPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_COMPILE_NOTHING = {"TORCHDYNAMO_DISABLE": "1"}  # it takes minutes, once per machine


def pinned_version() -> str:
    """The version of vLLM, read without importing it: where its inside has moved, imports end in errors that say less.

    Raises TaskError for another one than the pinned.
    """
    (package, *_) = importlib.metadata.packages_distributions()["vllm"]  # vllm, or vllm-cpu
    version = importlib.metadata.version(package)
    if version.split("+")[0] != PINNED:
        raise TaskError(f"engine: vllm {version} is installed; its inside is known for {PINNED} only")
    return version


def prepare_environment() -> None:
    """Set what is not set; must come before vLLM is imported."""
    import torch

    without_gpu = {} if torch.cuda.is_available() else VLLM_WITHOUT_GPU | _COMPILE_NOTHING
    for name, value in (VLLM_ENVIRONMENT | without_gpu).items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # 0.29's second model runner takes no logits processors

"""Entropy over the whole vocabulary: ours against the forms of verl, TRL and OpenRLHF, on logits of Qwen's size.

    python bench/entropy_kernel.py [--rows N] [--rounds N]

For float32 and bfloat16 logits: the largest error in nats against float64 of the same logits (wide and flat rows, rows
that are nearly certain, rows with ruled-out tokens), the time, and the memory that a call takes beside the logits. On a
GPU also the bandwidth of a copy, measured in the same run, and the share of it at which the kernel reads its logits.
Without one the kernel is checked by Triton's interpreter, on a few rows, and what needs a GPU is said not to be
measured. Exits with 1 when a bar is missed.
"""

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from egt_pipeline.entropy import entropy_nats
from interpreted_kernel import Sums, interpreted

V = 152_064  # of Qwen2.5-VL
BAR_NATS = 2e-6  # float32 has steps of 1e-6 at ln V = 11.9, where a result is rounded to half of one
BAR_SHARE = 0.8  # of the bandwidth of a copy: what is left for the exponentials, and for starting up
BAR_MEMORY = 0.01  # of the logits: nothing of their size is written
EXACT_ROWS, INTERPRETED_ROWS = 32, 2  # the interpreter takes a second a row
GPU_ROWS, CPU_ROWS = 512, 64  # 311 MB in float32, so that a GPU's cache of 50 MB holds none of it; 39 MB
DTYPES = (torch.float32, torch.bfloat16)

Entropy = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure, print, and exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=GPU_ROWS if torch.cuda.is_available() else CPU_ROWS)
    parser.add_argument("--rounds", type=int, default=20 if torch.cuda.is_available() else 5)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {named}; vocabulary {V:,}")
    peers = contenders()
    with interpreted() if device.type == "cpu" else nullcontext() as kernel:
        missed = [line for dtype in DTYPES for line in exactness(peers, kernel, dtype, device)]
    for dtype in DTYPES:
        logits = drawn(given.rows, 4.0, dtype, device)
        costs(peers, logits, given.rounds)
        missed += bandwidth(logits, given.rounds)
    for line in missed:
        print(f"missed: {line}")
    sys.exit(1 if missed else 0)


def contenders() -> dict[str, Entropy]:
    """Ours first. The others as their projects write them: their shapes and types are part of the form."""
    return {"ours": entropy_nats, "verl": verl, "verl, chunked": verl_chunked, "TRL": trl, "OpenRLHF": openrlhf()}


def verl(logits_NV: Tensor) -> Tensor:
    """``entropy_from_logits``: in the type of the logits, whatever it is."""
    return torch.logsumexp(logits_NV, -1) - (functional.softmax(logits_NV, -1) * logits_NV).sum(-1)


def verl_chunked(logits_NV: Tensor) -> Tensor:
    """``entropy_from_logits_with_chunking``: 2,048 rows at a time, in float32."""
    return torch.cat([verl(chunk.float()) for chunk in logits_NV.split(2048)])


def trl(logits_NV: Tensor) -> Tensor:
    """``entropy_from_logits``: 128 rows at a time, in the type of the logits."""
    chunks = [functional.log_softmax(chunk, -1) for chunk in logits_NV.split(128)]
    return torch.cat([-(log_p.exp() * log_p).sum(-1) for log_p in chunks])


def openrlhf() -> Entropy:
    """The installed package's own, compiled as it is there; its formula, compiled, where it is not installed."""
    package = importlib.util.find_spec("openrlhf")
    if package is None or package.origin is None:
        print("openrlhf is not installed; its formula, which is verl's, is compiled instead")
        return torch.compile(verl)
    # By its file: the package around it needs flash_attn.
    spec = importlib.util.spec_from_file_location("openrlhf_utils", Path(package.origin).parent / "models" / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_entropy


def cases(rows: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Logits by what is special about them. Each row of the nearly certain ones has its own distance, 9 to 30."""
    sure = drawn(rows, 1.0, torch.float32, device)
    sure[:, 7] = sure.amax(-1) + torch.linspace(9, 30, rows, device=device)
    ruled_out = drawn(rows, 4.0, torch.float32, device)
    ruled_out[:, ::3] = -math.inf
    spread = {f"spread {spread:g}": drawn(rows, spread, dtype, device) for spread in (0.01, 4.0, 12.0)}
    return spread | {"nearly certain": sure.to(dtype), "a third ruled out": ruled_out.to(dtype)}


def drawn(rows: int, spread: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same logits in every run."""
    found = torch.randn(rows, V, generator=torch.Generator().manual_seed(0)) * spread + 20
    return found.to(dtype).to(device)


def exact(logits_NV: Tensor) -> Tensor:
    """-sum p ln p in float64, a row at a time."""
    rows = [row.double().log_softmax(-1) for row in logits_NV]
    return torch.stack([-(log_p.exp() * log_p).nan_to_num(0.0).sum() for log_p in rows])


def exactness(peers: Mapping[str, Entropy], kernel: Sums | None, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Print the largest error of each, and of the interpreted kernel where there is one; ours above the bar."""
    missed = []
    for name, logits in cases(EXACT_ROWS, dtype, device).items():
        expected = exact(logits)
        found = {peer: error(entropy(logits), expected) for peer, entropy in peers.items()}
        ours = {"ours": found["ours"]}
        if kernel:
            few = logits[:: EXACT_ROWS // INTERPRETED_ROWS].contiguous()
            ours["kernel, interpreted"] = error(kernel(few)[0], exact(few))
        shown = ", ".join(f"{peer} {value:.1e}" for peer, value in (found | ours).items())
        print(f"{short(dtype)}, {name} ({expected.min():.1e} to {expected.max():.3g} nat): error {shown}")
        missed += [f"{short(dtype)}, {name}: {peer} errs by {value:.1e} nat"
                   for peer, value in ours.items() if not value <= BAR_NATS]  # fmt: skip
    return missed


def error(found: Tensor, expected: Tensor) -> float:
    """The largest, NaN if one is."""
    return float((found.double() - expected).abs().max())


def costs(peers: Mapping[str, Entropy], logits: Tensor, rounds: int) -> None:
    """Print time and memory of each, all in turn, as ratios to ours."""
    memory = {name: extra_bytes(entropy, logits) for name, entropy in peers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, entropy in peers.items():
            seconds[name].append(duration(lambda entropy=entropy: entropy(logits)))
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    size = logits.nbytes
    print(f"{short(logits.dtype)} [{len(logits)}, {V}], {size / 2**20:.0f} MiB:")
    for name in peers:
        print(f"  {name}: {middle[name] * 1e3:.2f} ms, {middle[name] / middle['ours']:.2f}x of ours; memory "
              f"{memory[name] / size:.3f}x of the logits")  # fmt: skip


def bandwidth(logits: Tensor, rounds: int) -> list[str]:
    """Print the kernel's share of a copy's bandwidth, and its memory; the bars that are missed."""
    if not logits.is_cuda:
        print(f"  the kernel's share of a copy's bandwidth (bar {BAR_SHARE:.0%}) and its memory (bar {BAR_MEMORY:.0%} "
              "of the logits): not measured: no GPU")  # fmt: skip
        return []
    from egt_pipeline.entropy_kernel import sums_in_one_pass

    target = torch.empty_like(logits)
    jobs = {"copy": lambda: target.copy_(logits), "kernel": lambda: sums_in_one_pass(logits)}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            seconds[name].append(duration(job))
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    copied, read = 2 * logits.nbytes / middle["copy"], logits.nbytes / middle["kernel"]
    used = extra_bytes(sums_in_one_pass, logits) / logits.nbytes
    print(f"  copy {copied / 1e9:,.0f} GB/s, kernel {read / 1e9:,.0f} GB/s: {read / copied:.1%} of it (bar "
          f"{BAR_SHARE:.0%}); memory {used:.4f}x of the logits (bar {BAR_MEMORY})")  # fmt: skip
    dtype = short(logits.dtype)
    return [
        *([] if read / copied >= BAR_SHARE else [f"{dtype}: {read / copied:.1%} of a copy's bandwidth"]),
        *([] if used <= BAR_MEMORY else [f"{dtype}: {used:.3f}x of the logits in memory"]),
    ]


def duration(job: Callable[[], object]) -> float:
    """Seconds of one call, on the device's own clock where it is a GPU."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        job()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    job()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def extra_bytes(entropy: Callable[[Tensor], object], logits: Tensor) -> int:
    """The most that a call holds beside its logits, after a first one that compiles and warms."""
    entropy(logits)
    if logits.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        entropy(logits)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Counted by torch: what its allocator keeps of the first call would hide a peak of the process.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        entropy(logits)
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))


def short(dtype: torch.dtype) -> str:
    """Its name without torch."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()

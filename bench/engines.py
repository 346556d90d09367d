"""vLLM's entropies against those of transformers, and what they cost beside vLLM's own log-probabilities.

    python bench/engines.py crds/examples/digits.yaml [--rows 256]     the fine-tuned model of a finished local run
    python bench/engines.py --vocabulary 152064                        a random model with so many tokens

Both engines answer the same rows greedily. Printed: how many answers are the same to the token, the largest difference
of a token's entropy in nats, and, as that is what curation uses, how far the lowest 15 % of the rows by either engine
agree (Jaccard), in float32 and with vLLM in bfloat16. With --vocabulary also tokens a second: measuring, without it,
and with logprobs=-1, which is the only way vLLM itself has.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.engines import open_engine
from egt_pipeline.engines.interface import Batch, Generation, Request
from egt_pipeline.judgements import judge, requests
from egt_pipeline.preferences import Images, read_preferences

EGT = str(Path(sys.executable).with_name("egt"))
LOW_SHARE = 0.15  # the paper's
BATCH = ProbeRecipe.model_fields["batch_size"].default
ROUNDS = 3
BAR_NATS = 1e-4


def main() -> None:
    """Compare, print, and exit with 1 above the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocabulary", type=int)
    given = parser.parse_args()
    if (given.manifest is None) == (given.vocabulary is None):
        parser.error("give either a manifest or --vocabulary")
    with tempfile.TemporaryDirectory(prefix="egt-engines-") as folder:
        if given.manifest:
            model, asked = of_run(given.manifest, given.rows)
            worst = compare(model, asked, tokens=48, low_precision=True)
        else:
            model, asked = of_vocabulary(Path(folder), given.vocabulary)
            worst = compare(model, asked, tokens=24, low_precision=False)
            costs(model, asked, tokens=24)
    sys.exit(0 if worst <= BAR_NATS else 1)


def of_run(manifest: Path, rows: int) -> tuple[Path, list[Request]]:
    """The fine-tuned model of a finished run, and rows that it has never seen."""
    planned = subprocess.run([EGT, "plan", str(manifest), "-o", "json"], stdout=subprocess.PIPE, check=True)
    digests = {line["name"]: line["digest"] for line in json.loads(planned.stdout)}
    from egt_operator.cli_parts import store_ref
    from egt_operator.manifest_file import load_run

    artifacts = Path(store_ref(load_run(manifest), None).uri.removeprefix("file://")) / "artifacts"
    data = artifacts / "prepare" / digests["prepare"] / "rl"
    asked = requests(read_preferences(data, labelled=False)[:rows], Images(data))
    return artifacts / "sft" / digests["sft"] / "model", asked


def of_vocabulary(folder: Path, size: int) -> tuple[Path, list[Request]]:
    """A random model whose head has ``size`` rows, far enough apart for entropies of every size."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from build_model import random_model
    from build_pictures import png

    model = AutoModelForImageTextToText.from_pretrained(random_model())
    torch.manual_seed(0)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.get_output_embeddings().weight.data.normal_(0, 0.6)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(random_model()).save_pretrained(folder)
    return folder, [Request(f"Number {number}?", "one", "two", (png(number % 8),)) for number in range(BATCH)]


def compare(model: Path, asked: Sequence[Request], *, tokens: int, low_precision: bool) -> float:
    """Print the comparison; the largest difference in float32, in nats."""
    exact = answers("transformers", "float32", model, asked, tokens)
    found = answers("vllm", "float32", model, asked, tokens)
    same = [one.token_ids_T.tolist() == other.token_ids_T.tolist() for one, other in zip(exact, found, strict=True)]
    pairs = [pair for pair, alike in zip(zip(exact, found, strict=True), same, strict=True) if alike]
    worst = max(float(np.abs(one.entropies_nats_T - other.entropies_nats_T).max()) for one, other in pairs)
    measured = sum(len(one.entropies_nats_T) for one, _ in pairs)
    print(f"float32: {sum(same)} of {len(same)} answers alike to the token; largest difference of {measured} tokens "
          f"{worst:.1e} nat (bar {BAR_NATS:.0e}, ratio {worst / BAR_NATS:.2f}); {agreement(exact, found)}")  # fmt: skip
    if low_precision:
        rounded = answers("vllm", "bfloat16", model, asked, tokens)
        print(f"bfloat16 by vllm against float32 by transformers: {agreement(exact, rounded)}")
    return worst


def answers(kind: str, precision: str, model: Path, asked: Sequence[Request], tokens: int) -> list[Generation]:
    """What one engine answers, the engine closed behind it."""
    recipe = ProbeRecipe(engine=kind, precision=precision, prompt="plain-v1", batch_size=64)  # type: ignore[arg-type]
    engine = open_engine(recipe, model, max_images=1)
    began = time.monotonic()
    (found,) = engine.generate([Batch(asked)], max_new_tokens=tokens, temperature=0.0)
    made = sum(len(one.entropies_nats_T) for one in found)  # type: ignore[union-attr]
    print(f"  {engine.facts['engine']} {precision}: {made / (time.monotonic() - began):.0f} tokens/s", file=sys.stderr)
    engine.close()
    return found  # type: ignore[return-value]


def agreement(exact: Sequence[Generation], found: Sequence[Generation]) -> str:
    """How far answers, their entropies and the lowest of them agree."""
    judged = [(judge(one), judge(other)) for one, other in zip(exact, found, strict=True)]
    usable = {number: pair for number, pair in enumerate(judged) if all(one.status == "ok" for one in pair)}
    if not usable:
        return "no answers to compare"
    entropies = np.array([[one.answer_entropy_nats for one in pair] for pair in usable.values()])
    kept = int(LOW_SHARE * len(usable))
    low = [set(np.argsort(column, kind="stable")[:kept].tolist()) for column in entropies.T]
    difference = np.abs(entropies[:, 0] - entropies[:, 1])
    alike = sum(one.predicted == other.predicted for one, other in usable.values())
    return (
        f"of {len(usable)} usable rows {alike} name the same answer, answers' entropies differ by "
        f"{difference.mean():.1e} on average, {difference.max():.1e} at most; lowest {LOW_SHARE:.0%}: Jaccard "
        f"{len(low[0] & low[1]) / max(1, len(low[0] | low[1])):.3f}"
    )


def costs(model: Path, asked: Sequence[Request], tokens: int) -> None:
    """Tokens a second of vLLM measuring, not measuring, and giving log-probabilities of all tokens."""
    from egt_pipeline.engines.vllm_engine import VllmEngine

    engine = VllmEngine(model, precision="float32", prompt="plain-v1", batch_size=len(asked), max_images=1)
    engine._prepare(tokens, 0.0)
    names = count()

    def speed(at_most: int, measure: bool, **named: object) -> float:
        began = time.monotonic()
        for row, request in enumerate(asked):
            parameters = engine._parameters(at_most, {"row": row}, ignore_eos=True, **named)
            parameters.extra_args = parameters.extra_args if measure else None
            engine._engine.add_request(str(next(names)), {"prompt": request.question}, parameters)
        left = len(asked)
        while left:
            left -= sum(output.finished for output in engine._engine.step())
        return len(asked) * at_most / (time.monotonic() - began)

    speed(tokens, measure=True)  # warm
    rounds = [
        {
            "measuring": speed(tokens, True),
            "not measuring": speed(tokens, False),
            "logprobs=-1": speed(2, False, logprobs=-1),
        }
        for _ in range(ROUNDS)
    ]
    engine.close()
    rates = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    against = {name: rates["measuring"] / rates[name] for name in rates}
    print(f"{len(asked)} requests at once, tokens/s: {shown}; measuring is {against['logprobs=-1']:.0f}x of "
          f"logprobs=-1 (bar 50x) and {against['not measuring']:.2f}x of not measuring")  # fmt: skip


if __name__ == "__main__":
    main()

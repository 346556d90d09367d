"""vLLM's entropies against those of transformers, and what they cost beside vLLM's own log-probabilities.

    python bench/engines.py crds/examples/digits.yaml [--rows 256]     the fine-tuned model of a finished local run
    python bench/engines.py --vocabulary 152064                        a random model with so many tokens

Both engines answer the same rows greedily. Printed: how many answers are the same to the token, the largest difference
of a token's entropy in nats, and, as that is what curation uses, how far the lowest 15 % of the rows by either engine
agree (Jaccard), in float32 and with vLLM in bfloat16. With --vocabulary also tokens a second: measuring, without it,
and with logprobs=-1, which is the only way vLLM itself has. Exits with 1 when a bar is missed, in float32: entropies,
answers alike, and with --vocabulary the speed beside logprobs=-1.

Answers that part count as far as they are one: up to the token where they part, which both engines choose from the
same distribution, its entropy is compared as well.
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
# Of the answers, the least share that is alike to the token. Two logits at the top that are closer than rounding, 2e-5,
# may change places: at one pair a nat, that is one answer of 48 tokens in a thousand. More is no rounding.
BAR_ALIKE = 0.99
BAR_SPEED = 50  # times logprobs=-1


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
            missed = compare(model, asked, tokens=48, low_precision=True)
        else:
            model, asked = of_vocabulary(Path(folder), given.vocabulary)
            missed = compare(model, asked, tokens=24, low_precision=False) + costs(model, asked, tokens=24)
    for line in missed:
        print(f"missed: {line}")
    sys.exit(1 if missed else 0)


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


def compare(model: Path, asked: Sequence[Request], *, tokens: int, low_precision: bool) -> list[str]:
    """Print the comparison; the bars that are missed in float32."""
    exact = answers("transformers", "float32", model, asked, tokens)
    found = answers("vllm", "float32", model, asked, tokens)
    together = [common(one.token_ids_T, other.token_ids_T) for one, other in zip(exact, found, strict=True)]
    alike = sum(part is None for part in together) / len(together)
    parts = zip(exact, found, together, strict=True)
    differences = [entropy_differences(one, other, part) for one, other, part in parts]
    worst = max((float(one.max()) for one in differences if len(one)), default=float("nan"))
    print(f"float32: {alike:.1%} of {len(together)} answers alike to the token (bar {BAR_ALIKE:.0%}); "
          f"{sum(map(len, differences))} tokens differ by {worst:.1e} nat at most (bar {BAR_NATS:.0e}, ratio "
          f"{worst / BAR_NATS:.2f}); {agreement(exact, found)}")  # fmt: skip
    if low_precision:
        rounded = answers("vllm", "bfloat16", model, asked, tokens)
        print(f"bfloat16 by vllm against float32 by transformers: {agreement(exact, rounded)}")
    return [
        *([] if worst <= BAR_NATS else [f"entropies differ by {worst:.1e} nat"]),
        *([] if alike >= BAR_ALIKE else [f"{alike:.1%} of the answers are alike"]),
    ]


def common(one_T: np.ndarray, other_T: np.ndarray) -> int | None:
    """The number of tokens before two answers part; None if they do not."""
    shorter = min(len(one_T), len(other_T))
    parting = np.flatnonzero(one_T[:shorter] != other_T[:shorter])
    if len(parting):
        return int(parting[0])
    return None if len(one_T) == len(other_T) else shorter


def entropy_differences(one: Generation, other: Generation, parting: int | None) -> np.ndarray:
    """Of the tokens that both have chosen from the same distribution; infinite where one of them measured none."""
    # An end has no entropy, so where one answer ends and the other does not there is nothing to compare.
    lengths = (len(one.entropies_nats_T), len(other.entropies_nats_T), *([] if parting is None else [parting + 1]))
    compared = [answer.entropies_nats_T[: min(lengths)] for answer in (one, other)]
    return np.nan_to_num(np.abs(compared[0] - compared[1]), nan=np.inf)


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


def costs(model: Path, asked: Sequence[Request], tokens: int) -> list[str]:
    """Tokens a second of vLLM measuring, not measuring, and giving log-probabilities of all tokens; the missed bar."""
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
          f"logprobs=-1 (bar {BAR_SPEED}x) and {against['not measuring']:.2f}x of not measuring")  # fmt: skip
    speedup = against["logprobs=-1"]
    return [] if speedup >= BAR_SPEED else [f"measuring is {speedup:.0f}x of logprobs=-1"]


if __name__ == "__main__":
    main()

"""``python tests/generation_peaks.py KIND``: what the engines allocate at their peak, one JSON line a case.

In a process of its own, as vLLM changes torch, and two engines of it do not fit into one process.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from allocations import Peak, model_of, tell


def generation(hidden: int, layers: int, samples: int, words: int, new: int, *, pictures: int = 0) -> None:
    """The transformers engine on prompts of unequal length, without ever saying the end."""
    from build_pictures import png
    from egt_pipeline.contract.recipes import ProbeRecipe
    from egt_pipeline.engines import open_engine
    from egt_pipeline.engines.interface import Batch, Request
    from egt_pipeline.tiny_model import build_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        build_tiny_model(Path(folder), hidden=hidden, vision_hidden=128, layers=layers)
        config = json.loads((Path(folder) / "config.json").read_text())
        recipe = ProbeRecipe(engine="transformers", prompt="plain-v1", batch_size=samples)
        engine: Any = open_engine(recipe, Path(folder), max_images=pictures)
    engine._vocabulary.ends = {-1}
    shown = tuple(png(1, (112, 112)) for _ in range(pictures))
    asked = [Request(" one two" * (words - place), "four", "7", shown) for place in range(samples)]
    generate, seen = engine._generate, {}

    def watched(inputs: Any, *rest: Any) -> Any:
        seen.update(prompt=inputs["input_ids"].shape[1], patches=len(inputs.get("pixel_values", ())))
        with Peak(*engine._model.parameters(), *engine._model.buffers(), engine._head_VD) as peak:
            steps = generate(inputs, *rest)
        seen.update(peak=peak.most)
        return steps

    engine._generate = watched
    next(engine.generate([Batch(asked)], max_new_tokens=new, temperature=0.0))
    tell(config, "generation", samples=samples, new=new, **seen)


def small_model(folder: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """A tiny model in bfloat16 with ``shape`` in place of its own sizes; its configuration."""
    from transformers import AutoConfig

    from egt_pipeline.tiny_model import build_tiny_model

    build_tiny_model(folder, hidden=shape.pop("hidden"), vision_hidden=shape.pop("vision", 128), layers=1)
    config = AutoConfig.from_pretrained(folder)
    config.vision_config.intermediate_size = shape.pop("vision_intermediate", 256)
    config.text_config.update(shape)
    model_of(config, torch.bfloat16).save_pretrained(folder)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


class Steps:
    """Watches vLLM's steps: the peak of them, and the most tokens and patches of one."""

    def __init__(self, engine: Any) -> None:
        runner = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        self._held = [*runner.model.parameters(), *runner.model.buffers(), *runner.kv_caches]
        self._step, self._execute, self._embed = engine.step, runner.execute_model, runner.model.embed_multimodal
        engine.step, runner.execute_model, runner.model.embed_multimodal = self.step, self.execute, self.embed
        self.forget()

    def forget(self) -> None:
        self.peak = self.tokens = self.patches = 0

    def step(self) -> Any:
        with Peak(*self._held) as peak:
            made = self._step()
        self.peak = max(self.peak, peak.most)
        return made

    def execute(self, scheduled: Any, *rest: Any, **named: Any) -> Any:
        self.tokens = max(self.tokens, scheduled.total_num_scheduled_tokens)
        return self._execute(scheduled, *rest, **named)

    def embed(self, **named: Any) -> Any:
        self.patches += int(named["image_grid_thw"].prod(-1).sum())
        return self._embed(**named)


def probe(samples: int, words: int, *, pictures: int = 0, temperature: float = 0.0, **shape: Any) -> None:
    """The probe's vLLM engine on as many prompts at once; what the first round leaves behind is not counted."""
    from build_pictures import png
    from egt_pipeline.contract.recipes import ProbeRecipe
    from egt_pipeline.engines import open_engine
    from egt_pipeline.engines.interface import Batch, Generation, Request

    with tempfile.TemporaryDirectory() as folder:
        config = small_model(Path(folder), shape)
        recipe = ProbeRecipe(engine="vllm", prompt="plain-v1", batch_size=samples)
        engine: Any = open_engine(recipe, Path(folder), max_images=pictures)
        steps = Steps(engine._engine)
        for first in (0, samples):
            steps.forget()
            asked = [
                Request(
                    f"{number}" + " one two" * words,
                    "four",
                    "7",
                    tuple(png(number * pictures + place, (448, 448)) for place in range(pictures)),
                )
                for number in range(first, first + samples)
            ]
            (answers,) = engine.generate([Batch(asked)], max_new_tokens=4, temperature=temperature)
            assert all(isinstance(answer, Generation) for answer in answers), answers
    told = {"samples": samples, "tokens": steps.tokens, "patches": steps.patches}
    tell(config, "probe", **told, temperature=temperature, peak=steps.peak)
    engine.close()


def rollouts(samples: int, **shape: Any) -> None:
    """vLLM as rl asks it: its own sampler, a seed and forbidden tokens for each, the log-probability of the chosen."""
    from egt_pipeline.engines.vllm_environment import PREFILL_TOKENS, prepare_environment

    prepare_environment()
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    with tempfile.TemporaryDirectory() as folder:
        config = small_model(Path(folder), shape)
        arguments = EngineArgs(
            model=folder,
            dtype="bfloat16",
            max_num_seqs=samples,
            max_num_batched_tokens=PREFILL_TOKENS,
            logprobs_mode="processed_logprobs",
            enforce_eager=True,
            skip_mm_profiling=True,
        )
        engine = LLMEngine.from_engine_args(arguments)
        steps = Steps(engine)
        for number in range(samples):
            asked = SamplingParams(temperature=1.0, max_tokens=4, logprobs=0, seed=number, logit_bias={5: -100.0})
            engine.add_request(str(number), {"prompt": f"{number}"}, asked)
        while engine.has_unfinished_requests():
            engine.step()
    tell(config, "rollouts", samples=samples, tokens=steps.tokens, patches=0, peak=steps.peak)


PROBES: tuple[dict[str, Any], ...] = (
    {"samples": 8, "words": 200, "hidden": 256, "intermediate_size": 2048},
    {"samples": 8, "words": 200, "hidden": 256, "intermediate_size": 1024, "num_key_value_heads": 2},
    {"samples": 4, "words": 10, "hidden": 256, "pictures": 2, "vision": 512, "vision_intermediate": 4096},
    {"samples": 4, "words": 10, "hidden": 256, "pictures": 2, "vision": 1280, "vision_intermediate": 3424},
    {"samples": 4, "words": 10, "hidden": 256, "pictures": 2, "vision": 1024, "vision_intermediate": 1024},
    {"samples": 4, "words": 10, "hidden": 256, "vocab_size": 32768},
    {"samples": 64, "words": 10, "hidden": 64, "vocab_size": 32768, "temperature": 1.0},
    {"samples": 16, "words": 10, "hidden": 64, "vocab_size": 65536, "temperature": 1.0},
)
ROLLOUTS: tuple[dict[str, Any], ...] = (
    {"samples": 16, "hidden": 64, "vocab_size": 131072},
    {"samples": 64, "hidden": 64, "vocab_size": 32768},
    {"samples": 64, "hidden": 128, "vocab_size": 65536},
)


def main(kind: str, place: int | None = None) -> None:
    """All cases of a kind; of vLLM's each in a process of its own."""
    match kind, place:
        case "generation", _:
            generation(256, 4, 8, 300, 4)
            generation(256, 4, 4, 10, 48)
            generation(128, 2, 4, 10, 4, pictures=4)
        case "probe", int():
            probe(**PROBES[place])
        case "rollouts", int():
            rollouts(**ROLLOUTS[place])
        case _:
            for number in range(len({"probe": PROBES, "rollouts": ROLLOUTS}[kind])):
                subprocess.run([sys.executable, "-W", "ignore", __file__, kind, str(number)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

"""Seconds of an RL step: our entry against OpenRLHF's own command with the same flags, one after the other.

Usage: python bench/rl_step.py [--steps 60] [--rounds 4]. Both train the tests' tiny model on the same prompts and print
their own `timing/step_total`; the first steps, in which everything is loaded, do not count. Both run on CPU where there
is no GPU; what OpenRLHF lacks there (openrlhf_entry/machine.py, and the weight sync of weights.py) is given to both.
The bar: ours / stock <= 1.02.
"""

import argparse
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

BAR = 1.02
FIRST_STEPS = 3  # caches fill, workers import what they need only now
BATCH = 8


def main() -> None:
    """Run both, print the figures, exit 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each")
    parser.add_argument("--rounds", type=int, default=4, help="how often each runs, in turn")
    parser.add_argument("--stock", help=argparse.SUPPRESS)  # how this file starts itself: a run file
    options = parser.parse_args()
    if options.stock:
        stock(options.stock)
        return
    with tempfile.TemporaryDirectory(prefix="egt-rl-step-") as folder:
        rounds = [one_round(Path(folder), number, options.steps) for number in range(options.rounds)]
    found = {}
    for name in rounds[0]:
        times = [seconds for measured in rounds for seconds in measured[name]]
        found[name] = statistics.median(times)
        each = ", ".join(f"{statistics.median(measured[name]):.3f}" for measured in rounds)
        print(f"{name:6} median {found[name]:.3f} s a step over {len(times)} steps (p90 {quantile(times):.3f} s)")
        print(f"       of each round: {each}")
    ratio = found["ours"] / found["stock"]
    print(f"ours / stock {ratio:.3f} (bar {BAR}): {'met' if ratio <= BAR else 'missed'}")
    sys.exit(0 if ratio <= BAR else 1)


def one_round(folder: Path, number: int, steps: int) -> dict[str, list[float]]:
    """The times of both; who goes first changes from round to round, since a machine is not equally busy all the time.

    The stock command of every round runs on what our entry left in the first.
    """
    from build_rl import speaking_model

    first = folder / "round-0"
    contenders = {
        "ours": lambda: ours(folder / f"round-{number}", speaking_model(), steps),
        "stock": lambda: against_stock(first, folder / f"stock-{number}.log"),
    }
    order = ["ours", "stock"] if number % 2 == 0 else ["stock", "ours"]
    times = {name: contenders[name]() for name in order}
    return {name: times[name] for name in contenders}


def quantile(times: list[float]) -> float:
    return statistics.quantiles(times, n=10)[-1]


def ours(place: Path, model: Path, steps: int) -> list[float]:
    """The times of a run of the rl stage."""
    from build_context import make_context
    from build_rl import build_rl_inputs
    from egt_pipeline.contract.recipes import RLRecipe
    from egt_pipeline.stages import rl

    recipe = RLRecipe(
        epochs=steps, batch_size=BATCH, micro_batch_size=4, learning_rate=1e-6, max_new_tokens=40,
        max_prompt_tokens=100, zero_stage=2, checkpoint_steps=10_000, prompt="plain-v1",
    )  # fmt: skip
    inputs = build_rl_inputs(place / "inputs", kept=BATCH, dropped=0, model=model)
    out = place / "out"
    out.mkdir()
    rl.run(recipe, inputs, out, make_context(place))
    return step_times(place / "scratch" / "rl" / "openrlhf.log")


def against_stock(place: Path, log: Path) -> list[float]:
    """The times of OpenRLHF's own command on what ``ours`` left in ``place``."""
    run_file = place / "scratch" / "rl" / "run.json"
    with log.open("w") as output:
        command = [sys.executable, __file__, "--stock", str(run_file)]
        done = subprocess.run(command, stdout=output, stderr=output, check=False, env=environment(run_file))
    if done.returncode:
        sys.exit(f"OpenRLHF's own command ended with {done.returncode}:\n{log.read_text()[-3000:]}")
    return step_times(log)


def environment(run_file: Path) -> dict[str, str]:
    from egt_pipeline.rl_run import RunFile
    from egt_pipeline.rl_run import environment as of_run

    return os.environ | of_run(RunFile.model_validate_json(run_file.read_bytes()), run_file)


def step_times(log: Path) -> list[float]:
    """What OpenRLHF says of each step, the first ones left out."""
    found = re.findall(r"Global step (\d+): .*'timing/step_total': ([\d.]+)", log.read_text(errors="replace"))
    return [float(seconds) for step, seconds in found if int(step) > FIRST_STEPS]


def stock(run_file: str) -> None:
    """OpenRLHF's own command in this process, with its own classes and this file's reward."""
    import ray

    import egt_pipeline.openrlhf_entry  # noqa: F401  # gives this process what the machine lacks
    from egt_pipeline.openrlhf_entry.machine import has_cuda
    from egt_pipeline.rl_run import RunFile, arguments, logical_devices

    with tempfile.TemporaryDirectory(prefix="egt-") as folder:
        update = {"folder": Path(folder), "output": Path(folder) / "model"}
        run = RunFile.model_validate_json(Path(run_file).read_bytes()).model_copy(update=update)
        devices = {} if has_cuda() else {"num_cpus": logical_devices(run), "num_gpus": logical_devices(run)}
        hook = {"worker_process_setup_hook": "egt_pipeline.openrlhf_entry.machine.install"}
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, runtime_env=hook, **devices)
        if not has_cuda():
            rollouts_on_cpu(run.model)
        flags = [flag for flag in arguments(run, cuda=has_cuda()) if not flag.startswith("--train.agent_func_path")]
        sys.argv = ["train_ppo_ray", *flags, f"--reward.remote_url={__file__}"]
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


def rollouts_on_cpu(model: Path) -> None:
    """The stock engine actor with a worker that takes new weights on CPU, which forgets images the engine counts on.

    A model that has not learnt to speak samples the tokens of pictures, which ends the stock trainer with an error.
    """
    import ray
    from openrlhf.trainer.ray import vllm_engine
    from transformers import AutoTokenizer

    from egt_pipeline.prompts import FORBIDDEN_TOKENS

    known = AutoTokenizer.from_pretrained(model).get_vocab()
    never = {known[token]: -100.0 for token in FORBIDDEN_TOKENS if token in known}

    class OnCpu(vllm_engine.RolloutRayActor.__ray_metadata__.modified_class):  # type: ignore[misc]
        async def __init__(self, *arguments: Any, **named: Any) -> None:  # type: ignore[misc]
            named["worker_extension_cls"] = "egt_pipeline.openrlhf_entry.weights.WorkerExtension"
            await super().__init__(*arguments, **named)

        async def generate(self, tokens: Any, parameters: Any, **pictures: Any) -> Any:
            parameters.logit_bias = never
            return await super().generate(tokens, parameters, **pictures)

        async def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> Any:
            result = await super().update_weight(name, dtype, shape, empty_cache)
            if empty_cache:
                await self.llm.reset_mm_cache()
                await self.llm.reset_encoder_cache()
            return result

    vllm_engine.RolloutRayActor = ray.remote(OnCpu)


def reward_func(queries: list[str], prompts: list[str], labels: list[str], **_: Any) -> dict[str, Any]:  # noqa: ARG001
    """OpenRLHF's hook: the reward of one response by its label."""
    import torch

    from egt_pipeline.rewards import grade, reward, rule_logic

    response = queries[0].rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>")
    graded = grade(response, json.loads(labels[0])["label"], truncated=False)
    logic = rule_logic(graded.reasoning, graded.answer) if graded.accuracy and graded.answer else 0
    value = reward(graded.accuracy, logic, graded.format, logic_weight=0.5, format_weight=0.5)
    return {"rewards": torch.tensor([value]), "scores": torch.tensor([float(graded.accuracy)]), "extra_logs": {}}


if __name__ == "__main__":
    main()

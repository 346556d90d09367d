"""RL on all samples, on the low-entropy and on the high-entropy share, with equal numbers of updates.

Usage: python bench/arms.py [--seeds 0,1,2] [--share 0.3]. Runs the real rl stage, starting from the store of
`make demo`, so that every arm shares its sft and probe. Prints held-out gold accuracy and the index of style bias,
acc(right answer is a word) - acc(it is a digit), beside the reward, which rises in every arm. The bar: index of low
<= 0.08, of all >= 0.15.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
EGT = str(Path(sys.executable).with_name("egt"))
LOW_BAR, ALL_BAR = 0.08, 0.15
# Three times the demo's: at its rate of 1e-4 the arms part slowly. At 2e-4 they part sooner, and less evenly.
STEPS = 300


def main() -> None:
    """Run what is not published yet, print the table, exit 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0", help="seeds of rl, separated by commas")
    parser.add_argument("--share", type=float, default=0.3, help="share of the samples in the low and the high arm")
    options = parser.parse_args()
    arms = {"all": {"share": 1.0}, "low": {"share": options.share}, "high": {"share": options.share, "band": "high"}}
    rows = [
        {"arm": arm, "seed": seed, **figures(arm, keep, seed)}
        for seed in map(int, options.seeds.split(","))
        for arm, keep in arms.items()
    ]
    print(f"{'arm':5} {'seed':>4} {'gold before':>12} {'gold after':>11} {'bias before':>12} {'bias after':>11} "
          f"{'reward first':>13} {'reward last':>12}")  # fmt: skip
    for row in rows:
        print(f"{row['arm']:5} {row['seed']:4} {row['sft']:12.3f} {row['final']:11.3f} {row['sft_bias']:12.3f} "
              f"{row['final_bias']:11.3f} {row['reward_first']:13.3f} {row['reward_last']:12.3f}")  # fmt: skip
    index = {arm: max if arm == "low" else min for arm in ("low", "all")}
    worst = {arm: pick(row["final_bias"] for row in rows if row["arm"] == arm) for arm, pick in index.items()}
    passed = worst["low"] <= LOW_BAR and worst["all"] >= ALL_BAR
    print(f"worst index of low {worst['low']:.3f} (bar {LOW_BAR}, ratio {worst['low'] / LOW_BAR:.2f}), "
          f"of all {worst['all']:.3f} (bar {ALL_BAR}, ratio {worst['all'] / ALL_BAR:.2f}): "
          f"{'met' if passed else 'missed'}")  # fmt: skip
    sys.exit(0 if passed else 1)


def figures(arm: str, keep: dict[str, Any], seed: int) -> dict[str, float]:
    """The figures of one arm, run now unless its artifacts are there."""
    manifest = yaml.safe_load((ROOT / "crds/examples/digits.yaml").read_text())
    manifest["metadata"]["name"] = f"arms-{arm}-{seed}"
    manifest["spec"]["curate"]["keep"] = keep
    manifest["spec"]["rl"] |= {"seed": seed, "maxSteps": STEPS}
    # All arms see their samples in random order: the comparison is about what is in them.
    manifest["spec"]["rl"]["order"] = "shuffled"
    path = ROOT / "runs" / f"arms-{arm}-{seed}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(manifest))
    done = subprocess.run(
        [EGT, "local", "run", str(path), "-o", "json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{path}: exit code {done.returncode}")
    metrics = {stage["name"]: stage["metrics"] for stage in json.loads(done.stdout.splitlines()[-1])["stages"]}
    scores = metrics["evaluate"]
    bias = {m: scores[f"{m}.accuracy.group.word"] - scores[f"{m}.accuracy.group.digit"] for m in ("sft", "final")}
    return {
        "sft": scores["sft.accuracy"],
        "final": scores["final.accuracy"],
        "sft_bias": bias["sft"],
        "final_bias": bias["final"],
        "reward_first": metrics["rl"]["reward_first"],
        "reward_last": metrics["rl"]["reward_last"],
    }


if __name__ == "__main__":
    main()

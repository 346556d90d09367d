"""Sweeps for tests: a file beside its base, and figures of runs."""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from build_manifest import manifest
from egt_pipeline.metrics import wilson
from egt_pipeline.sweep_results import Scored

LEAST: dict[str, Any] = {
    "apiVersion": "egt.dev/v1alpha1",
    "kind": "EGTSweep",
    "metadata": {"name": "grid"},
    "base": "base.yaml",
    "seeds": {"fields": ["rl.seed"], "values": [0, 1]},
    "arms": {"low": {}, "high": {"curate.keep.band": "high"}},
}


def sweep(**changes: Any) -> dict[str, Any]:
    """The smallest sweep with parts replaced."""
    return {**copy.deepcopy(LEAST), **changes}


def write_sweep(folder: Path, document: dict[str, Any], base: dict[str, Any] | None = None) -> Path:
    """The sweep as a file, with its base beside it."""
    (folder / "base.yaml").write_text(yaml.safe_dump(base or manifest()))
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(document, indent=1))  # which is YAML too, and has no aliases
    return path


def scored(arm: str, seed: int, share: float, *, digest: str = "", model: str = "final") -> Scored:
    """A run whose accuracy is ``share`` of 1,000 held-out samples."""
    found = wilson(round(1000 * share), 1000)
    figures = {"accuracy": found.share, "accuracy.low": found.low, "accuracy.high": found.high}
    metrics = {"accuracy": found.share, "sft.accuracy": 0.5} | {f"{model}.{name}": v for name, v in figures.items()}
    return Scored(arm, seed, digest or f"{arm}-{seed}", metrics)

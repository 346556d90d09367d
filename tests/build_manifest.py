"""Manifests for tests: the smallest one that is accepted, and changes to it."""

import copy
from typing import Any

MINIMAL: dict[str, Any] = {
    "apiVersion": "egt.dev/v1alpha1",
    "kind": "EGTRun",
    "metadata": {"name": "small"},
    "spec": {
        "model": {"source": "model"},
        "data": {
            "sft": {"source": "sft.jsonl"},
            "rl": {"source": "rl.jsonl"},
            "evaluate": [{"name": "heldout", "source": "heldout.jsonl"}],
        },
        "store": {"uri": "runs/small"},
        "distill": {"teacher": {"model": "teacher"}},
    },
}


def manifest(**changes: Any) -> dict[str, Any]:
    """The smallest manifest with fields of spec replaced; ``probe__generations=8`` sets spec.probe.generations."""
    document = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = document["spec"]
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return document

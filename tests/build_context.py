"""A context for one stage in a test."""

from pathlib import Path
from typing import Any

from egt_pipeline.context import Context
from egt_pipeline.store_file import FileWork


def make_context(tmp_path: Path, **overrides: Any) -> Context:
    """A context whose scratch and work lie below ``tmp_path``; work outlives it, as it does in a store."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return Context(**{"scratch": scratch, "work": FileWork(tmp_path / "work"), "refs": {}, **overrides})

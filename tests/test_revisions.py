"""A reminder: when the code of a stage moves, think about its revision.

``tests/revisions.json`` remembers, for each stage, its revision and a hash of the code its results come from. When the
code moved without a change of meaning, run ``python tests/test_revisions.py``; with one, raise the revision in
contract/graph.py first.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import egt_pipeline
from egt_pipeline.contract.graph import STAGES

PACKAGE = Path(egt_pipeline.__file__).parent
MEMORY = Path(__file__).with_name("revisions.json")
# What says how things are stored and handed over, not what is computed.
_NO_MEANING = ("egt_pipeline.contract", "egt_pipeline.context", "egt_pipeline.store")

# What a stage starts, or names to others, instead of importing it.
_INSIDE_VLLM = ["egt_pipeline.engines.vllm_probe"]
_STARTED = {
    "probe": _INSIDE_VLLM,
    "evaluate": _INSIDE_VLLM,
    "rl": [f"egt_pipeline.openrlhf_entry.{path.stem}" for path in sorted((PACKAGE / "openrlhf_entry").glob("*.py"))],
    "sft": ["egt_pipeline.sft_train"],
}


def code_hash(stage: str) -> str:
    """A hash of the stage's module and of all it imports of ours, without comments and docstrings."""
    seen: dict[str, str] = {}
    todo = [f"egt_pipeline.stages.{stage}", *_STARTED.get(stage, ())]
    while todo:
        module = todo.pop()
        path = module_path(module)
        if module in seen or path is None or module.startswith(_NO_MEANING):
            continue
        tree = ast.parse(path.read_text())
        seen[module] = ast.dump(without_docstrings(tree))
        todo += imports_of(tree)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:12]


def module_path(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("egt_pipeline"):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("egt_pipeline"))


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body.pop(0)
    return tree


def now() -> dict[str, list[object]]:
    return {str(stage.name): [stage.revision, code_hash(stage.name)] for stage in STAGES}


def test_a_stage_whose_code_moved_was_thought_about() -> None:
    moved = [name for name, mark in now().items() if json.loads(MEMORY.read_text()).get(name) != mark]
    assert moved == [], f"the code of {moved} moved: raise their revision if the meaning did, see the top of this file"


if __name__ == "__main__":
    MEMORY.write_text(json.dumps(now(), indent=1) + "\n")

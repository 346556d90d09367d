"""A file becomes an EGTRun (or another kind), or one error that says everything that is wrong with it, line by line."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, SequenceNode

from egt_operator.api import EGTRun
from egt_operator.schema_rules import inner_models
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.words import in_words

MAX_BYTES = 2**17  # a manifest has a few KiB; the densest YAML of this size takes the parser two seconds
MAX_DEPTH = 32  # EGTRun is 6 deep; the loader recurses, and Python's stack ends long before a hostile file does
_LISTED = 20  # errors: what a terminal shows without scrolling
_COMMANDS = {"EGTRun": "egt plan", "EGTSweep": "egt sweep plan"}  # what begins with a file of each kind
# What the API server adds to metadata: what `kubectl get -o yaml` prints is a manifest. No sweep is in a cluster.
_OF_THE_SERVER = {
    "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generation",
    "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
}  # fmt: skip

Location = Sequence[int | str]
Kind = TypeVar("Kind", bound=Recipe)


class _Loader(yaml.SafeLoader):
    """YAML as data: no tags of Python's, no key twice, no aliases (a few lines of them unfold to gigabytes)."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            self._refuse("aliases (*name) are not accepted; write it out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name!r} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def _refuse(self, problem: str) -> NoReturn:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def load_run(path: Path) -> EGTRun:
    """The run that the YAML file at ``path`` holds. Raises TaskError with one line for everything that is wrong."""
    return load(path, EGTRun)


def load(path: Path, kind: type[Kind]) -> Kind:
    """The object that the YAML file at ``path`` holds, as ``load_run``."""
    text = _read(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        several = isinstance(error, yaml.composer.ComposerError) and "single document" in str(error.context)
        problem = f"holds several documents; one file holds one {kind.__name__}" if several else str(error.problem)
        raise TaskError(f"{path}{line}: {problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that Python cannot hold
        raise TaskError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict) or not isinstance(node, MappingNode):
        raise TaskError(f"{path}: holds no {kind.__name__}; its file starts with apiVersion, kind and metadata")
    _check_kind(path, data.get("kind"), kind)
    if kind is EGTRun and isinstance(metadata := data.get("metadata"), dict):
        data["metadata"] = {name: value for name, value in metadata.items() if name not in _OF_THE_SERVER}
    try:
        return kind.model_validate(_without_nulls(data, kind), by_alias=True, by_name=False)
    except ValidationError as error:
        wrong = error.errors()
        lines = [f"{path}:{_line(node, details['loc'])}: {say(details, kind)}" for details in wrong[:_LISTED]]
        rest = [f"{path}: and {len(wrong) - _LISTED} more"] if len(wrong) > _LISTED else []
        raise TaskError("\n".join(lines + rest)) from None


def _check_kind(path: Path, found: Any, kind: type[BaseModel]) -> None:
    """Raises TaskError at a file of our other kind: whatever else is said of its fields would mislead."""
    if isinstance(found, str) and found in _COMMANDS and found != kind.__name__:
        raise TaskError(f"{path}: kind: {found!r} is not an {kind.__name__}; use: {_COMMANDS[found]} {path}")


def _without_nulls(value: Any, model: type[BaseModel]) -> Any:
    """Fields that are null are left out, as the API server does it: they have their defaults. Maps stay as they are."""
    if isinstance(value, list):
        return [_without_nulls(item, model) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    kept = {key: inside for key, inside in value.items() if inside is not None or key not in fields}
    inner = {key: inner_models(fields[key].annotation) for key in kept.keys() & fields.keys()}
    return {key: _without_nulls(inside, inner[key][0]) if inner.get(key) else inside for key, inside in kept.items()}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise TaskError(f"{path}: is larger than {MAX_BYTES:,} bytes; a manifest has a few thousand")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: byte {error.start} is not UTF-8 text") from None


def _line(node: Node, location: Location) -> int:
    """The line of the innermost part of ``location`` that stands in the file, counted from 1."""
    line: int = node.start_mark.line
    for step in location:
        if isinstance(node, MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == step), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
    return line + 1


def say(details: ErrorDetails, kind: type[BaseModel]) -> str:
    """One error about an object of a kind, in one line; with what the kind knows of the field or of its neighbours."""
    said = in_words(details)
    match details["type"]:
        case "missing":
            return f"{said}{_purpose(details['loc'], kind)}"
        case "extra_forbidden":
            return f"{said}; {_nearest(details['loc'], kind)}"
    return said


def _nearest(location: Location, kind: type[BaseModel]) -> str:
    model = _model_at(location[:-1], kind)
    known = [field.alias or name for name, field in model.model_fields.items()] if model else []
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def _purpose(location: Location, kind: type[BaseModel]) -> str:
    model = _model_at(location[:-1], kind)
    fields = model.model_fields.items() if model else ()
    text = next((field.description for name, field in fields if (field.alias or name) == location[-1]), None)
    return f"; {text}" if text else ""


def _model_at(location: Location, model: type[BaseModel]) -> type[BaseModel] | None:
    """The type of the object at a location in a ``model``; None inside a map."""
    for step in location:
        if isinstance(step, int):
            continue
        field = next((f for name, f in model.model_fields.items() if (f.alias or name) == step), None)
        inside = inner_models(field.annotation) if field else []
        if not inside:
            return None
        model = inside[0]
    return model

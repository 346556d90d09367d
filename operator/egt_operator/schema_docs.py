"""What people and editors read of the API: the field reference and a JSON schema. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from egt_operator import api
from egt_operator.api_status import EGTRunStatus
from egt_operator.schema_rules import is_frozen_rule
from egt_operator.sweep_file import EGTSweep

Schema = Mapping[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_INTRODUCTION = """\
# EGTRun: field reference

One `EGTRun` says a whole run. `examples/` holds manifests to start from. With the line
`# yaml-language-server: $schema=<path to egtrun.schema.json>` on top, an editor completes and checks a manifest.

A field marked *fixed* is part of what the run is: it cannot change once the run exists in a cluster. Resources,
workers, processes and pods of a stage can change while the stage waits: before it starts, between two attempts, and
while the run is suspended. `null` and leaving a field out mean the same.
"""


def editor_schema() -> dict[str, Any]:
    """The JSON schema of a manifest as people write it: without status, unknown fields refused."""
    schema = api.EGTRun.model_json_schema(by_alias=True)
    del schema["properties"]["status"]
    for unused in (EGTRunStatus.__name__, *EGTRunStatus.model_json_schema()["$defs"]):
        del schema["$defs"][unused]
    return {"$schema": _DRAFT, **schema}


def sweep_schema() -> dict[str, Any]:
    """The JSON schema of a sweep file."""
    return {"$schema": _DRAFT, **EGTSweep.model_json_schema(by_alias=True)}


def reference_markdown(run: Schema) -> str:
    """The field reference, one table for each block of spec and for status, from the structural schema of a run."""
    properties = run["properties"]
    spec, status = properties["spec"]["properties"], properties["status"]
    blocks = {name: node for name, node in spec.items() if "properties" in node}
    plain = {name: node for name, node in spec.items() if name not in blocks}
    name = properties["metadata"]["properties"]["name"]
    sections = [
        _INTRODUCTION,
        f"`metadata.name` matches `{name['pattern']}` and has at most {name['maxLength']} characters.",
        *(_section(f"spec.{name}", node, fixed=_is_fixed(node)) for name, node in blocks.items()),
        _section("spec", {"description": "What concerns the run as a whole.", "properties": plain}, fixed=False),
        _section("status", status, fixed=False),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def as_json(schema: Schema) -> str:
    """Text of a JSON file, with a line break at its end."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _section(title: str, node: Schema, *, fixed: bool) -> str:
    lines = [f"## {title}", "", node.get("description", ""), "", "| field | type | default | |", "|---|---|---|---|"]
    return "\n".join(lines + [_row(path, field, inside) for path, field, inside in _fields(node, "", fixed)])


def _fields(node: Schema, prefix: str, fixed: bool) -> Iterator[tuple[str, Schema, tuple[bool, bool]]]:
    """(path, schema, (fixed, required)) of every field below an object, depth first."""
    for name, field in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        stays = fixed or _is_fixed(field)
        yield path, field, (stays, name in node.get("required", ()))
        yield from _fields(field, f"{path}.", stays)
        yield from _fields(field.get("items", {}), f"{path}[].", stays)


def _row(path: str, field: Schema, marks: tuple[bool, bool]) -> str:
    fixed, required = marks
    is_object = "properties" in field
    default = "required" if required else "" if is_object or "default" not in field else _code(field["default"])
    text = field.get("description", "") + (" *fixed*" if fixed and not is_object else "")
    return f"| `{path}` | {_type(field)} | {default} | {text.replace('|', chr(92) + '|')} |"


def _type(field: Schema) -> str:
    match field["type"]:
        case "array":
            return f"list of {_type(field['items'])}"
        case "object" if "additionalProperties" in field:
            return f"map of {_type(field['additionalProperties'])}"
    if "enum" in field:
        return " ".join(_code(value) for value in field["enum"])
    return f"{field.get('format', field['type'])}{_range(field)}"


def _range(field: Schema) -> str:
    parts = []
    if "minimum" in field:
        parts.append(f"{'>' if field.get('exclusiveMinimum') else '>='} {field['minimum']}")
    if "maximum" in field:
        parts.append(f"{'<' if field.get('exclusiveMaximum') else '<='} {field['maximum']}")
    return f" {', '.join(parts)}" if parts else ""


def _is_fixed(field: Schema) -> bool:
    return any(is_frozen_rule(rule) for rule in field.get("x-kubernetes-validations", ()))


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"

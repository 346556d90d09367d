"""The generated CRD, reference and editor schema: current, complete, and in agreement with the types."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, V1CustomResourceDefinition
from pydantic import BaseModel, Field

from build_manifest import manifest
from egt_operator.api import EGTRun, EGTRunSpec
from egt_operator.schema import MAX_STRING, crd, generated_files, run_schema, structural
from egt_operator.schema_rules import is_frozen_rule, required_stages
from egt_pipeline.contract.base import Placement
from egt_pipeline.contract.graph import STAGES

ROOT = Path(__file__).parents[2]
RULES = "x-kubernetes-validations"
Schema = dict[str, Any]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema below one, with its path."""
    yield path, schema
    for name, inside in schema.get("properties", {}).items():
        yield from nodes(inside, f"{path}.{name}".removeprefix("."))
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def rules(schema: Schema) -> list[str]:
    """The CEL rules of one node that are not about immutability."""
    return [rule["rule"] for rule in schema.get(RULES, []) if "oldSelf" not in rule["rule"]]


def filled(value: Any, schema: Schema) -> Any:
    """``value`` with the defaults that an API server fills in: a default first, then the defaults inside it."""
    if isinstance(value, list):
        return [filled(item, schema["items"]) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    known = schema["properties"]
    missing = {key: copy.deepcopy(s["default"]) for key, s in known.items() if key not in value and "default" in s}
    return {key: filled(item, known[key]) for key, item in (value | missing).items()}


@pytest.mark.parametrize(("path", "text"), generated_files().items(), ids=generated_files())
def test_a_generated_file_is_current(path: str, text: str) -> None:
    assert (ROOT / path).read_text() == text, "run `egt generate`"


def test_the_kubernetes_client_knows_every_word_of_the_crd() -> None:
    definition = crd()
    read = V1CustomResourceDefinition.from_dict(definition)
    assert ApiClient().sanitize_for_serialization(read) == definition


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_field_of_a_recipe_is_in_the_crd(stage: Any) -> None:
    spec = run_schema()["properties"]["spec"]["properties"]
    of_the_run = {"model", "data", "needResponses"}
    for name, field in stage.recipe.model_fields.items():
        key = field.alias or name
        assert key in spec[stage.name]["properties"] or (stage.name == "prepare" and key in of_the_run), key


def test_every_field_is_described_and_bounded() -> None:
    for path, node in nodes(run_schema()):
        if path.startswith(("spec", "status")) and not path.endswith("[]"):
            assert node.get("description"), path
        if node["type"] == "string" and not path.startswith(("apiVersion", "kind")):
            assert {"enum", "format", "maxLength"} & set(node), path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("changes", [{}, {"sft": {"epochs": 3}}, {"curate": {"keep": {"topK": 5}}}], ids=str)
def test_the_defaults_of_the_api_server_are_those_of_the_types(changes: dict[str, Any]) -> None:
    document = manifest(**changes)
    spec = filled(document, run_schema())["spec"]
    typed = EGTRun.model_validate(document).spec
    assert spec == json.loads(typed.model_dump_json(by_alias=True, exclude_none=True))


def objects() -> list[tuple[str, Schema]]:
    """Every node of a run but maps, which have no fields."""
    return [(path, node) for path, node in nodes(run_schema()) if "additionalProperties" not in node]


def test_a_map_whose_keys_are_labels_says_so_by_a_rule() -> None:
    found = {path for path, node in nodes(run_schema()) if any("key.matches" in rule for rule in rules(node))}
    assert found == {"spec.scheduling.nodeSelector", "spec.podTemplate.labels", "spec.podTemplate.annotations"}


def test_a_default_object_can_be_tried_against_the_rules_of_its_own_object() -> None:
    """The API server does so before it fills in what is inside: no rule may read a field that is not there yet."""
    checked = {path: rules(node) for path, node in objects() if isinstance(node.get("default"), dict)}
    assert {path for path, found in checked.items() if found} == {"spec.curate.keep"}
    keep = run_schema()["properties"]["spec"]["properties"]["curate"]["properties"]["keep"]
    assert keep["default"] == {"share": 0.15}  # exactly one amount, and no percentile for which band would be read


def test_the_recipe_is_immutable_and_where_it_runs_is_not() -> None:
    fixed = {path for path, node in nodes(run_schema()) if any(is_frozen_rule(rule) for rule in node.get(RULES, []))}
    frozen = {
        "spec.model",
        "spec.data",
        "spec.store.uri",
        "spec.sft.enabled",
        "spec.sft.learningRate",
        "spec.curate.keep",
    }
    assert frozen | {"spec.distill.teacher.model", "spec.rl.judge.kind"} <= fixed
    free = {"suspend", "ttl", "activeDeadlineSeconds", "queueDeadlineSeconds", "sft.resources", "sft.processes"}
    free |= {
        "sft.pods",
        "probe.workers",
        "sft.checkpointSteps",
        "distill.teacher.baseUrl",
        "rl.judge.endpoint.apiKeyEnv",
        "store.credentialsSecret",
        "scheduling",
        "retry",
        "podTemplate",
    }
    assert not {f"spec.{name}" for name in free} & fixed
    assert not any(path.startswith(f"spec.{name}.") for name in free for path in fixed)


def test_every_field_of_spec_is_either_placement_or_frozen() -> None:
    def check(model: type[BaseModel], node: Schema, path: str) -> None:
        for name, field in model.model_fields.items():
            key = field.alias or name
            inside = node["properties"][key]
            if Placement in field.metadata or any(is_frozen_rule(rule) for rule in inside.get(RULES, [])):
                continue
            parts = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(t, type)]
            parts = [part for part in parts if issubclass(part, BaseModel)]
            assert parts, f"{path}.{key} can change, but is not marked Placement"
            check(parts[0], inside, f"{path}.{key}")

    check(EGTRunSpec, run_schema()["properties"]["spec"], "spec")


def test_an_optional_field_of_a_recipe_can_be_neither_added_nor_removed() -> None:
    sft = run_schema()["properties"]["spec"]["properties"]["sft"]
    assert [rule["rule"] for rule in sft[RULES]] == [
        "has(self.lora) == has(oldSelf.lora) && has(self.maxSteps) == has(oldSelf.maxSteps)"
    ]


def test_oldself_is_never_used_inside_a_list_that_cannot_be_correlated() -> None:
    for path, node in nodes(run_schema()):
        if node.get("x-kubernetes-list-type") == "atomic":
            inside = [rule["rule"] for _, n in nodes(node["items"]) for rule in n.get(RULES, [])]
            assert not [rule for rule in inside if "oldSelf" in rule], path


def test_the_rules_between_stages_come_from_the_graph() -> None:
    pairs = {("probe", "sft"), ("curate", "probe"), ("rl", "sft"), ("rl", "curate"), ("evaluate", "sft")}
    assert {(str(stage), str(needed)) for stage, needed in required_stages()} == pairs
    said = rules(run_schema()["properties"]["spec"])
    assert {f"!self.{stage}.enabled || self.{needed}.enabled" for stage, needed in pairs} <= set(said)


def test_a_rule_names_only_fields_that_exist() -> None:
    for path, node in objects():
        for rule in node.get(RULES, []):
            for name in _paths(rule["rule"]):
                inside: Schema = node
                for step in name.split("."):
                    assert step in inside.get("properties", {}), f"{path or 'root'}: {rule['rule']} reads {name}"
                    inside = inside["properties"][step]
            named = f"{path}{rule.get('fieldPath', '')}".removeprefix(".")
            assert named in dict(nodes(run_schema())), f"{path or 'root'}: {rule['message']!r} is said of {named}"


def _paths(rule: str) -> list[str]:
    words = "".join(char if char.isalnum() or char in "._(" else " " for char in rule).replace("has(", " ").split()
    found = [word.lstrip("(").split(".", 1)[1] for word in words if word.lstrip("(").startswith(("self.", "oldSelf."))]
    return [".".join(step for step in path.split(".") if "(" not in step) for path in found]


def test_lists_that_several_write_to_merge_by_name() -> None:
    found = dict(nodes(run_schema()))
    keys = {path: node.get("x-kubernetes-list-map-keys") for path, node in found.items() if node["type"] == "array"}
    named = {path: key for path, key in keys.items() if key}
    assert named == {"status.conditions": ["type"], "spec.data.evaluate": ["name"]}


def test_what_has_no_structural_form_is_an_error() -> None:
    class Mixed(BaseModel):
        value: int | str

    class Several(BaseModel):
        value: int = Field(multiple_of=3)

    class Pair(BaseModel):
        value: tuple[int, str]

    for model in (Mixed, Several, Pair):
        with pytest.raises(ValueError, match="structural form"):
            structural(model)


def test_limits_are_written_as_kubernetes_writes_them() -> None:
    sft = run_schema()["properties"]["spec"]["properties"]["sft"]["properties"]
    assert (sft["learningRate"]["minimum"], sft["learningRate"]["exclusiveMinimum"]) == (0, True)
    assert (sft["adamBetas"]["minItems"], sft["adamBetas"]["maxItems"]) == (2, 2)
    assert sft["adamBetas"]["items"] == {"type": "number", "minimum": 0, "maximum": 1, "exclusiveMaximum": True}
    assert sft["maxSteps"] == {"type": "integer", "minimum": 1, "description": "Optimiser steps in all."} | {
        RULES: sft["maxSteps"][RULES]
    }
    assert sft["zeroStage"]["enum"] == [0, 2, 3]
    assert run_schema()["properties"]["spec"]["properties"]["model"]["properties"]["source"]["maxLength"] == MAX_STRING


def test_kubectl_get_has_the_columns_people_ask_for() -> None:
    version = crd()["spec"]["versions"][0]
    known = dict(nodes(run_schema()))
    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert list(columns) == ["Stage", "Phase", "Reason", "Progress", "Accuracy", "Queue", "Age"]
    paths = {re.sub(r"\[\?\(.*?\)\]", "[]", path).removeprefix(".") for name, path in columns.items() if name != "Age"}
    assert paths <= known.keys()
    assert crd()["spec"]["names"]["shortNames"] == ["egt"]
    assert version["subresources"] == {"status": {}}

"""What editors read of the API accepts the examples and marks what is mistyped in them."""

from pathlib import Path

import jsonschema
import yaml

from egt_operator.schema_docs import editor_schema, sweep_schema

ROOT = Path(__file__).parents[2]


def test_an_editor_accepts_the_examples_and_marks_a_mistyped_field() -> None:
    schema = editor_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = yaml.safe_load((ROOT / "crds/examples/digits.yaml").read_text())
    assert not list(validator.iter_errors(document))
    document["spec"]["sft"]["lerningRate"] = 1
    assert ["lerningRate" in error.message for error in validator.iter_errors(document)] == [True]
    assert "status" not in schema["properties"]


def test_an_editor_accepts_the_sweeps_and_marks_a_mistyped_field() -> None:
    schema = sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = yaml.safe_load((ROOT / "crds/examples/sweeps/digits.yaml").read_text())
    assert not list(validator.iter_errors(document))
    document["arm"] = {}
    assert ["'arm' was unexpected" in error.message for error in validator.iter_errors(document)] == [True]

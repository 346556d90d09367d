"""A damaged manifest of an artifact is told in one line: where it lies, the field, the value and what is accepted."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from build_artifact import DIGEST, STAGE, manifest_of
from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.words import in_words
from egt_pipeline.store import parse_manifest

WHERE = "store/artifacts/probe/manifest.json"
WHOLE = manifest_of().model_dump_json().encode()


def refusal(text: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        parse_manifest(text, WHERE, STAGE, DIGEST)
    return str(caught.value)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(WHOLE) | changes).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(revision="many"), "revision: 'many' is not accepted; it should be a valid integer, unable to parse"),
        (changed(stage="prob"), "stage: 'prob' is not accepted; it must be 'prepare', 'distill'"),
        (changed(files=[{"path": "a", "key": "a", "size_bytes": 1}]), "files[0].sha256: is missing"),
        (changed(colour="red"), "colour: is no field here"),
        (
            changed(revision=None, metrics=[]),
            "revision: None is not accepted; it should be a valid integer (and 1 more)",
        ),
        (WHOLE[:40], "is not JSON: EOF while parsing a string at line 1 column 40"),
        (b"\xff", "is not JSON: "),
        (b"", "is not JSON: EOF while parsing a value"),
        (b"[1]", "[1] is not accepted; it should be an object"),
    ],
)
def test_a_damaged_manifest_is_told_in_one_line(text: bytes, said: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{WHERE}: not a manifest: ")
    assert said in message
    assert "\n" not in message


def test_a_key_where_the_name_of_its_variable_belongs_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        Endpoint.model_validate({"model": "m", "apiKeyEnv": "sk-secret", "baseUrl": "https://user:password@host"})
    said = " ".join(map(in_words, caught.value.errors()))
    assert "secret" not in said
    assert "password" not in said
    assert said.startswith(("apiKeyEnv: what was given", "baseUrl: what was given"))


def test_a_whole_manifest_is_read() -> None:
    assert parse_manifest(WHOLE, WHERE, STAGE, DIGEST) == manifest_of()

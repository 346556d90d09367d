"""prepare: every row that comes in comes out, with a status and a reason."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build_context import make_context
from build_source import png, png_header, recipe_of, row, write_source
from egt_pipeline.context import StageResult
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.fingerprint import fingerprint
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.preferences import Images, read_preferences
from egt_pipeline.stages import prepare

ROWS = [row(number) for number in range(10)]


def prepared(tmp_path: Path, recipe: PrepareRecipe, name: str = "out") -> tuple[StageResult, list[dict[str, Any]]]:
    out = tmp_path / name
    out.mkdir()
    result = prepare.run(recipe, {}, out, make_context(tmp_path))
    return result, pq.read_table(out / "rl" / "preferences.parquet").to_pylist()


def one_bad(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The row in normal form that ``changes`` made bad, among good ones; sums balance."""
    result, rows = prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS, row(10, **changes)])))
    assert [found["row"] for found in rows] == list(range(11))
    assert result.metrics["rl.rows"] == 11
    assert result.metrics["rl.ok"] == 10
    assert sum(found["status"] == "ok" for found in rows) == 10
    return rows[10]


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"images": ["images/none.png"]}, "missing_image", "images/none.png"),
        ({"images": ["../good/images/0.png"]}, "bad_image", "leads out of the source's folder"),
        ({"images": ["a\0b.png"]}, "bad_image", "is no path"),
        ({"images": [None]}, "bad_image", "neither a path nor bytes"),
        ({"images": []}, "bad_image", "no image"),
        ({"question": ["a", "b"]}, "bad_text", "question is a list"),
        ({"sample_id": "s-003"}, "duplicate_id", "'s-003' came before"),
        ({"sample_id": ""}, "bad_id", "empty"),
        ({"sample_id": None}, "bad_id", "empty"),
        ({"sample_id": "a\nb"}, "bad_id", "control characters"),
        ({"answer_1": "  "}, "empty_text", "answer_1 is empty"),
        ({"question": None}, "empty_text", "question is empty"),
        ({"answer_1": "x", "answer_2": " x "}, "equal_answers", "same text"),
        ({"label": 0}, "bad_label", "label 0 is neither 1 nor 2"),
        ({"label": 3}, "bad_label", "label 3"),
        ({"label": True}, "bad_label", "label True"),
        ({"label": None}, "bad_label", "label None"),
        ({"label": "better"}, "bad_label", "label 'better'"),
        ({"label": ...}, "missing_column", "no label"),
        ({"strength": "much"}, "bad_strength", "strength 'much' is no number"),
        ({"strength": 10**400}, "bad_strength", "is no number"),
        ({"answer_1": "x" * 1_000_001}, "too_long", "1000001 characters"),
    ],
)
def test_a_bad_row_comes_out_with_its_reason(tmp_path: Path, changes: dict[str, Any], status: str, reason: str) -> None:
    bad = one_bad(tmp_path, **changes)
    assert bad["status"] == status
    assert reason in bad["reason"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (b"GIF but not really", "no known format"),
        (png(side=64)[:-30], "damaged"),
        (png_header(50_000, 50_000), "50000 x 50000 pixels"),
        (png(side=1), "1 x 1 pixels"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    source = write_source(tmp_path / "rl", [*ROWS, row(10)])
    (source.parent / "images" / "10.png").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, rows = prepared(tmp_path, recipe_of(tmp_path, source))
    assert rows[10]["status"] == "bad_image"
    assert "images/10.png" in rows[10]["reason"]
    assert reason in rows[10]["reason"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kibibytes: it was not decoded"


def test_a_line_that_is_not_json_is_a_bad_row_with_its_place(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [*ROWS, "{broken"])
    _, rows = prepared(tmp_path, recipe_of(tmp_path, source))
    assert rows[10]["status"] == "unreadable"
    assert "data.jsonl:11" in rows[10]["reason"]


def test_a_bad_row_does_not_stand_in_the_way_of_a_good_one_with_its_id(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [*ROWS, row(10, label=9), row(11, sample_id="s-010")])
    _, rows = prepared(tmp_path, recipe_of(tmp_path, source))
    assert [found["status"] for found in rows[10:]] == ["bad_label", "ok"]


def test_tags_in_an_answer_stay_and_the_row_is_used(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [*ROWS, row(10, answer_1="<image> <answer>2</answer>")])
    _, rows = prepared(tmp_path, recipe_of(tmp_path, source, rl={"answerOrder": "given"}))
    assert rows[10]["status"] == "ok"
    assert rows[10]["answer_1"] == "<image> <answer>2</answer>"


def test_half_a_surrogate_pair_does_not_stop_the_run(tmp_path: Path) -> None:
    _, rows = prepared(
        tmp_path, recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS, row(10, question="a\ud800")]))
    )
    assert (rows[10]["status"], rows[10]["question"]) == ("ok", "a?")


def test_labels_may_be_text(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [row(0, label="2"), row(1, label=1.0)])
    _, rows = prepared(tmp_path, recipe_of(tmp_path, source, rl={"answerOrder": "given"}))
    assert [found["label"] for found in rows] == [2, 1]


def test_too_many_bad_rows_stop_the_run_and_name_some(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [*ROWS, row(10, label=7), row(11, label=8)])
    with pytest.raises(TaskError, match=r"(?s)2 of 12 rows are bad, more than maxBadShare 0.1.*row 10 \(s-010\)"):
        prepared(tmp_path, recipe_of(tmp_path, source, maxBadShare=0.1))


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"data\.rl: the source has no rows"):
        prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "rl", [])))


def test_half_of_the_rows_are_shown_exchanged_label_and_answers_together(tmp_path: Path) -> None:
    _, rows = prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS])))
    exchanged = [found for found in rows if found["answer_order"] == "21"]
    assert len(exchanged) == 5
    for found in rows:
        original = ROWS[found["row"]]
        best = original[f"answer_{original['label']}"]
        assert found[f"answer_{found['label']}"] == best


def test_who_is_exchanged_depends_on_neither_labels_nor_the_order_of_rows(tmp_path: Path) -> None:
    def exchanged(name: str, rows: list[dict[str, Any]]) -> set[str]:
        source = write_source(tmp_path / name, [*rows])
        for number, changed in enumerate(rows):
            original = int(changed["sample_id"][2:])
            (source.parent / changed["images"][0]).write_bytes(png(original))
            assert number < len(rows)
        _, found = prepared(tmp_path, recipe_of(tmp_path, source), f"out-{name}")
        return {r["sample_id"] for r in found if r["answer_order"] == "21"}

    flipped = [{**original, "label": 3 - original["label"]} for original in ROWS]
    assert exchanged("plain", ROWS) == exchanged("flipped", flipped) == exchanged("reversed", ROWS[::-1])


def test_equal_rows_have_equal_digests_in_any_folder_and_format(tmp_path: Path) -> None:
    lines = write_source(tmp_path / "one", [*ROWS])
    table = write_source(tmp_path / "two", [*ROWS]).with_name("data.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    first, _ = prepared(tmp_path, recipe_of(tmp_path, lines), "out-1")
    second, _ = prepared(tmp_path, recipe_of(tmp_path, table), "out-2")
    assert first.content == second.content


def test_labels_are_in_the_digest_of_rl_and_in_no_other(tmp_path: Path) -> None:
    flipped = [{**original, "label": 3 - original["label"]} for original in ROWS]
    before, _ = prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "one", [*ROWS])), "out-1")
    after, _ = prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "two", [*flipped])), "out-2")
    assert {name for name in before.content if before.content[name] != after.content[name]} == {"rl"}


def test_another_picture_is_other_data(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [*ROWS])
    before, _ = prepared(tmp_path, recipe_of(tmp_path, source), "out-1")
    (source.parent / "images" / "3.png").write_bytes(png(200))
    after, _ = prepared(tmp_path, recipe_of(tmp_path, source), "out-2")
    assert before.content["rl-unlabelled"] != after.content["rl-unlabelled"]


def test_pictures_inside_a_parquet_file_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{**original, "images": [{"bytes": png(number), "path": None}]} for number, original in enumerate(ROWS)]
    path = tmp_path / "rl.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    prepared(tmp_path, recipe_of(tmp_path, path))
    images = Images(tmp_path / "out" / "rl")
    preferences = read_preferences(tmp_path / "out" / "rl", labelled=True)
    assert [images[found.images[0]] for found in preferences] == [png(number) for number in range(10)]


def test_reading_without_labels_gives_none_to_everybody(tmp_path: Path) -> None:
    prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS])))
    assert {found.label for found in read_preferences(tmp_path / "out" / "rl", labelled=False)} == {None}


def test_rows_without_a_response_are_bad_when_nobody_distills(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS]), needResponses=True)
    with pytest.raises(TaskError, match=r"data\.sft: 4 of 4 rows are bad"):
        prepared(tmp_path, recipe)


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS]), model={"source": str(tmp_path / "empty")})
    with pytest.raises(TaskError, match=r"spec\.model\.source: .*empty has no config\.json"):
        prepared(tmp_path, recipe)


def test_the_record_of_the_model_names_every_file(tmp_path: Path) -> None:
    prepared(tmp_path, recipe_of(tmp_path, write_source(tmp_path / "rl", [*ROWS])))
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    assert [entry["path"] for entry in record["files"]] == [
        "chat_template.jinja", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
    ]  # fmt: skip


def test_the_fingerprint_moves_with_a_file_and_stays_otherwise(tmp_path: Path) -> None:
    source = write_source(tmp_path / "rl", [*ROWS])
    recipe = recipe_of(tmp_path, source)
    before = fingerprint(recipe)
    (source.parent / "run.log").write_text("something else that lies there")
    assert fingerprint(recipe) == before
    os.utime(source.parent / "images" / "3.png", ns=(1, 1))
    assert fingerprint(recipe) != before

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import transformers

from build_model import random_model
from build_probe import context, model_artifact, row, write_prepared
from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.contract.recipes import EvaluateRecipe
from egt_pipeline.engines.facts import ENGINE_KEY
from egt_pipeline.metrics import wilson
from egt_pipeline.stages import evaluate

RECIPE = EvaluateRecipe(prompt="plain-v1", precision="float32", max_new_tokens=8, batch_size=8)
BAD = {"status": "bad_label", "reason": "label 3 is neither 1 nor 2", "label": None}
ROWS = [row(number, **(BAD if number == 5 else {})) for number in range(12)]


@pytest.fixture
def inputs(tmp_path):
    write_prepared(tmp_path / "prepare" / "evaluate" / "heldout", ROWS)
    return {"data": tmp_path / "prepare", "sft": model_artifact(tmp_path / "sft")}


def run(inputs, base, recipe=RECIPE, **where):
    base.mkdir(exist_ok=True)
    result = evaluate.run(recipe, inputs, base, context(base, **where))
    return pq.read_table(base / evaluate.PREDICTIONS_FILE), result.metrics


def test_every_row_comes_out_once_for_each_model(inputs, tmp_path):
    table, _ = run(inputs | {"final": model_artifact(tmp_path / "rl")}, tmp_path / "run")
    assert table.schema == evaluate.PREDICTIONS
    assert table["model"].to_pylist() == ["sft"] * 12 + ["final"] * 12
    assert table["row"].to_pylist() == [*range(12), *range(12)]
    assert set(table["benchmark"].to_pylist()) == {"heldout"}
    first, bad = table.to_pylist()[0], table.to_pylist()[5]
    assert (first["label"], first["answer_order"], first["subset"], first["group"]) == (1, "21", "clear", "word")
    assert (bad["status"], bad["correct"], bad["predicted"], bad["label"]) == ("input_error", False, None, None)
    assert bad["reason"] == "label 3 is neither 1 nor 2"


def test_correct_means_that_the_prediction_equals_the_label_and_what_is_not_ok_is_wrong(inputs, tmp_path):
    table, metrics = run(inputs, tmp_path / "run")
    rows = table.to_pylist()
    assert {found["predicted"] for found in rows} == {1, 2, None}
    right = sum(found["predicted"] == found["label"] and found["status"] == "ok" for found in rows)
    assert sum(found["correct"] for found in rows) == right
    assert 0 < right < 11
    assert metrics["accuracy"] == metrics["sft.accuracy"] == right / 12
    assert metrics["sft.rows"] == 12
    assert metrics["sft.status.input_error"] == 1


def test_the_engine_is_named_in_the_metrics_and_its_facts_in_the_table(inputs, tmp_path):
    table, metrics = run(inputs | {"final": model_artifact(tmp_path / "rl")}, tmp_path / "run")
    (facts,) = json.loads(table.schema.metadata[ENGINE_KEY])
    assert metrics["engine"] == facts["engine"] == f"transformers {transformers.__version__}"
    assert facts["precision"] == "float32"


def test_a_model_that_never_answers_is_always_wrong(inputs, tmp_path):
    _, metrics = run(inputs | {"final": model_artifact(tmp_path / "rl", random_model())}, tmp_path / "run")
    assert metrics["final.accuracy"] == metrics["accuracy"] == 0
    assert metrics["sft.accuracy"] > 0
    assert "final.position_constant" not in metrics


def test_swapped_labels_turn_right_answers_into_wrong_ones(inputs, tmp_path):
    table, _ = run(inputs, tmp_path / "run")
    swapped = [one | {"label": one["label"] and 3 - one["label"]} for one in ROWS]
    write_prepared(tmp_path / "swapped" / "evaluate" / "heldout", swapped)
    other, _ = run(inputs | {"data": tmp_path / "swapped"}, tmp_path / "other")
    ok = np.array([status == "ok" for status in table["status"].to_pylist()])
    assert table["response"].equals(other["response"])
    assert (table["correct"].to_numpy()[ok] != other["correct"].to_numpy()[ok]).all()


def test_each_benchmark_has_an_accuracy_of_its_own(inputs, tmp_path):
    write_prepared(tmp_path / "prepare" / "evaluate" / "another", ROWS[:4])
    table, metrics = run(inputs, tmp_path / "run")
    assert table["benchmark"].to_pylist() == ["another"] * 4 + ["heldout"] * 12
    for benchmark, rows in (("another", 4), ("heldout", 12)):
        correct = table.filter(pc.equal(table["benchmark"], benchmark))["correct"].to_numpy().sum()
        assert metrics[f"sft.accuracy.benchmark.{benchmark}"] == correct / rows


def test_a_second_attempt_goes_on_from_the_committed_chunks(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_CHUNK_ROWS", 4)
    inputs = inputs | {"final": model_artifact(tmp_path / "rl")}
    unbroken, _ = run(inputs, tmp_path / "unbroken")
    base = tmp_path / "broken"
    base.mkdir()
    stop_after = iter([False, False, False, True])  # the last chunk of sft and the first of final are there then
    with pytest.raises(StoppedError):
        evaluate.run(RECIPE, inputs, base, context(base, stopping=lambda: next(stop_after)))
    (inputs["sft"] / "model").unlink()  # nothing of it is done again
    resumed, _ = run(inputs, base)
    assert resumed.equals(unbroken)
    files = [tmp_path / name / evaluate.PREDICTIONS_FILE for name in ("broken", "unbroken")]
    assert files[0].read_bytes() == files[1].read_bytes()


def predictions(predicted, label, **other):
    rows = [
        {
            "row": number,
            "sample_id": str(number),
            "model": "final",
            "benchmark": "heldout",
            "subset": None,
            "group": None,
            "label": wanted,
            "predicted": said,
            "correct": said == wanted,
            "status": "ok" if said else "truncated",
        }
        | other
        for number, (said, wanted) in enumerate(zip(predicted, label, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=evaluate.PREDICTIONS)


def test_a_judge_that_always_says_one_shows_in_its_gap_and_flag():
    metrics = evaluate.metrics(predictions([1] * 100, [1, 2] * 50))
    assert metrics["final.accuracy"] == 0.5
    assert metrics["final.accuracy.position_1"] == 1
    assert metrics["final.accuracy.position_2"] == 0
    assert metrics["final.position_gap"] == 1
    assert metrics["final.answered_1_share"] == 1
    assert metrics["final.position_constant"] is True


@pytest.mark.parametrize(("twos", "constant"), [(94, False), (95, True)])
def test_a_judge_is_position_constant_from_95_percent_on(twos, constant):
    said = [2] * twos + [1] * (100 - twos)
    metrics = evaluate.metrics(predictions(said, [1, 2] * 50))
    assert metrics["final.position_constant"] is constant


def test_a_good_judge_has_no_gap_and_wilson_bounds():
    metrics = evaluate.metrics(predictions([1, 2] * 45 + [2, 1] * 5, [1, 2] * 50))
    bounds = wilson(90, 100)
    assert metrics["final.accuracy"] == 0.9
    assert (metrics["final.accuracy.low"], metrics["final.accuracy.high"]) == (bounds.low, bounds.high)
    assert metrics["final.position_gap"] == 0
    assert metrics["final.position_constant"] is False


def test_missing_answers_count_as_wrong_and_leave_the_answered_share_alone():
    metrics = evaluate.metrics(predictions([1, None, None, 2], [1, 1, 2, 2]))
    assert metrics["final.accuracy"] == 0.5
    assert metrics["final.answered_1_share"] == 0.5
    assert metrics["final.status.truncated"] == 2


def test_subsets_and_groups_have_accuracies_of_their_own():
    clear = predictions([1, 2], [1, 2], subset="clear", group="word")
    degraded = predictions([1, 2], [2, 2], subset="degraded", group="word")
    metrics = evaluate.metrics(pa.concat_tables([clear, degraded]))
    assert metrics["final.accuracy.subset.clear"] == 1
    assert metrics["final.accuracy.subset.degraded"] == 0.5
    assert metrics["final.accuracy.group.word"] == 0.75


def test_a_column_that_numbers_groups_of_pairs_gives_no_accuracy_for_each():
    tables = [predictions([1], [1], group=f"pair-{number}", subset="clear") for number in range(13)]
    metrics = evaluate.metrics(pa.concat_tables(tables))
    assert metrics["final.accuracy.subset.clear"] == 1
    assert not any("group" in name for name in metrics)

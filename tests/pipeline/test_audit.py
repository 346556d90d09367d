import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from build_model import copy_of, judge_model
from build_probe import context, model_artifact, row, write_prepared
from egt_pipeline.audit import AUDITED_ROWS, LIMITS, audit, median_ln_ratio
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.preferences import Images, read_preferences
from egt_pipeline.stages import probe

ROWS = AUDITED_ROWS + 8
IMAGE_PAD = 12  # <|image_pad|> of the tests' model


def measured_by(base, model, precision):
    """A table of the probe, and a function that audits another one in its place."""
    recipe = ProbeRecipe(engine="transformers", prompt="plain-v1", precision=precision, max_new_tokens=8, batch_size=8)
    folder = write_prepared(base / "prepare" / "rl", [row(number) for number in range(ROWS)])
    (base / "out").mkdir()
    probe.run(
        recipe, {"data": folder.parent, "model": model_artifact(base / "sft", model)}, base / "out", context(base)
    )
    rows, images = read_preferences(folder, labelled=False), Images(folder)
    return pq.read_table(base / "out" / probe.ENTROPIES_FILE), lambda other: audit(recipe, other, rows, images, model)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measured_by(tmp_path_factory.mktemp("audit"), judge_model(), "float32")


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    """In bfloat16: rows that the judge is so sure of that no entropy is as large as the mean that may differ."""
    base = tmp_path_factory.mktemp("sure")
    model = copy_of(judge_model(), base / "model")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] *= 30
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    table, audited = measured_by(base, model, "bfloat16")
    return table.filter(pc.less(table["answer_entropy_nats"], LIMITS["bfloat16"].mean_nats)), audited


def changed(table, name, change):
    values = [change(value) for value in table[name].to_pylist()]
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


def test_a_true_table_differs_by_rounding_only(measured):
    table, audited = measured
    found = audited(table)
    assert found.metrics["audit.rows"] == AUDITED_ROWS
    assert found.metrics["audit.answer_entropy_nats.max_difference"] < 1e-5
    assert found.metrics["audit.sentence_entropy_nats.max_difference"] < 1e-5


def test_rows_without_an_answer_are_not_replayed(measured):
    table, audited = measured
    none = changed(table, "status", lambda _: "no_answer")
    assert audited(none).metrics == {"audit.rows": 0, "audit.unreplayable_rows": 0}


def test_the_differences_reported_are_those_of_the_table(measured):
    table, audited = measured
    drawn = np.random.default_rng(0)
    moved = audited(changed(table, "sentence_entropy_nats", lambda value: value + drawn.uniform(1e-6, 1e-5))).metrics
    least, most = (moved[f"audit.sentence_entropy_nats.{name}_difference"] for name in ("mean", "max"))
    assert 2e-6 < least < 8e-6 < most < 1.2e-5


def test_entropies_that_the_model_does_not_have_are_refused_with_the_difference(measured):
    table, audited = measured
    with pytest.raises(
        TaskError, match=r"over 32 rows: audit\.answer\S*mean_difference is 0\.2\d*, 0\.0001 is accepted"
    ):
        audited(changed(table, "answer_entropy_nats", lambda value: value + 0.2))


def test_low_entropies_that_differ_by_rounding_are_accepted(sure):
    table, audited = sure
    drawn = np.random.default_rng(0)
    found = audited(changed(table, "answer_entropy_nats", lambda value: value * math.exp(drawn.normal(0, 0.06))))
    assert 0.01 < found.metrics["audit.answer_entropy_nats.median_ln_ratio"] < 0.1


@pytest.mark.parametrize("which", ["answer", "sentence"])
def test_low_entropies_that_are_all_doubled_are_refused(sure, which):
    table, audited = sure
    name = f"{which}_entropy_nats"
    with pytest.raises(
        TaskError, match=rf"over \d+ rows: audit\.{name}\.median_ln_ratio is 0\.6\d+, \S+ is accepted\. Use"
    ):
        audited(changed(table, name, lambda value: value * 2))


def test_an_answer_that_the_response_does_not_hold_is_refused_with_its_row(measured):
    table, audited = measured
    with pytest.raises(TaskError, match=r"row \d+ names answer"):
        audited(changed(table, "predicted", lambda value: 3 - value))


def test_responses_with_a_token_that_stands_for_a_picture_are_counted_and_left_out(measured):
    table, audited = measured
    numbers = iter(range(ROWS))
    held = changed(table, "token_ids", lambda tokens: [IMAGE_PAD, *tokens] if next(numbers) % 8 else tokens)
    metrics = audited(held).metrics
    assert (metrics["audit.rows"], metrics["audit.unreplayable_rows"]) == (5, 35)


def test_the_ratio_is_the_median_of_rows_with_an_entropy_above_the_floor():
    pairs = np.array([[0.01, 0.02]] * 5 + [[0.3, 0.3]] * 4 + [[1e-9, 1e-6]] * 20)
    assert median_ln_ratio(pairs) == pytest.approx(math.log(2))


def test_an_entropy_that_has_vanished_counts_from_the_floor_on():
    assert median_ln_ratio(np.array([[0.0, 0.01]] * 9)) == pytest.approx(math.log(1000))


def test_a_few_rows_above_the_floor_have_no_ratio():
    assert median_ln_ratio(np.array([[0.01, 0.02]] * 7 + [[0.0, 0.0]] * 20)) is None

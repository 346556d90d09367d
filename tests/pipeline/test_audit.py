import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build_model import judge_model
from build_probe import context, model_artifact, row, write_prepared
from egt_pipeline.audit import AUDITED_ROWS, audit
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.preferences import Images, read_preferences
from egt_pipeline.stages import probe

RECIPE = ProbeRecipe(prompt="plain-v1", precision="float32", max_new_tokens=8, batch_size=8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A table of the probe, and a function that audits another one in its place."""
    base = tmp_path_factory.mktemp("audit")
    folder = write_prepared(base / "prepare" / "rl", [row(number) for number in range(AUDITED_ROWS + 8)])
    (base / "out").mkdir()
    inputs = {"data": folder.parent, "model": model_artifact(base / "sft")}
    probe.run(RECIPE, inputs, base / "out", context(base))
    rows, images = read_preferences(folder, labelled=False), Images(folder)
    table = pq.read_table(base / "out" / probe.ENTROPIES_FILE)
    return table, lambda changed: audit(RECIPE, changed, rows, images, judge_model())


def changed(table, name, change):
    values = [change(value) for value in table[name].to_pylist()]
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


def test_a_true_table_differs_by_rounding_only(measured):
    table, audited = measured
    found = audited(table)
    assert found.metrics["audit.rows"] == AUDITED_ROWS
    assert found.answer_N.max() < 1e-5
    assert found.sentence_N.max() < 1e-5


def test_rows_without_an_answer_are_not_replayed(measured):
    table, audited = measured
    none = changed(table, "status", lambda _: "no_answer")
    assert audited(none).metrics == {"audit.rows": 0}


def test_the_differences_reported_are_those_of_the_table(measured):
    table, audited = measured
    drawn = np.random.default_rng(0)
    moved = audited(changed(table, "sentence_entropy_nats", lambda value: value + drawn.uniform(1, 2)))
    assert 1 < moved.sentence_N.min() <= moved.metrics["audit.sentence_entropy_nats.max_difference"] < 2


def test_entropies_that_the_model_does_not_have_are_refused_with_the_difference(measured):
    table, audited = measured
    with pytest.raises(TaskError, match=r"differ by 0\.2\d* nats on average over 32 rows, 0\.0001 is accepted"):
        audited(changed(table, "answer_entropy_nats", lambda value: value + 0.2))


def test_an_answer_that_the_response_does_not_hold_is_refused_with_its_row(measured):
    table, audited = measured
    with pytest.raises(TaskError, match=r"row \d+ names answer"):
        audited(changed(table, "predicted", lambda value: 3 - value))

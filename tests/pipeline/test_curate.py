"""The curate stage from entropies.parquet to selection.parquet."""

import math
import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build_entropies import generation, write_entropies
from egt_pipeline import sample_scores
from egt_pipeline.context import Context
from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.recipes import CurateRecipe, Keep
from egt_pipeline.preferences import PREFERENCES
from egt_pipeline.stages import curate


class NoWork:
    """curate keeps nothing between attempts."""


def run(tmp_path: Path, rows, recipe, *, labels=None):
    write_entropies(tmp_path / "probe", rows, rows_a_group=7)
    inputs = {"entropies": tmp_path / "probe"}
    if labels is not None:
        folder = tmp_path / "prepare" / "rl"
        folder.mkdir(parents=True, exist_ok=True)
        blank = dict.fromkeys(PREFERENCES.names)
        pq.write_table(
            pa.Table.from_pylist([blank | {"row": row, "label": label} for row, label in labels.items()], PREFERENCES),
            folder / "preferences.parquet",
        )
        inputs["labels"] = tmp_path / "prepare"
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    result = curate.run(recipe, inputs, out, Context(scratch=tmp_path, work=NoWork(), refs={}))
    return pl.read_parquet(out / "selection.parquet"), result.metrics


def kept_ids(table: pl.DataFrame) -> list[str]:
    return table.filter(pl.col("decision") == "kept").sort("rank")["sample_id"].to_list()


def pool(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    return [
        generation(row, round(draw.gammavariate(2, 0.2), 1), round(draw.random(), 1), predicted=draw.choice([1, 1, 2]))
        for row in range(count)
    ]


def test_every_sample_has_one_row_in_input_order_and_the_sums_balance(tmp_path):
    rows = pool(100)
    rows[3] |= {"status": "no_answer", "answer_entropy_nats": None, "predicted": None}
    rows[5]["answer_entropy_nats"] = math.nan
    rows[6]["sentence_entropy_nats"] = None
    rows[7]["answer_entropy_nats"] = -0.1
    rows[8]["predicted"] = None
    rows[9]["sentence_entropy_nats"] = math.inf
    table, metrics = run(tmp_path, rows, CurateRecipe(keep=Keep(share=1.0)))
    assert table["row"].to_list() == list(range(100))
    assert table["sample_id"].to_list() == [row["sample_id"] for row in rows]
    reasons = dict(table.filter(pl.col("decision") == "dropped").select("row", "reason").rows())
    assert reasons == {
        3: "status is no_answer",
        5: "entropy is not finite",
        6: "entropy is null",
        7: "entropy is negative",
        8: "no predicted answer",
        9: "entropy is not finite",
    }
    assert table.filter(pl.col("score").is_null())["row"].to_list() == [3, 5, 6, 7, 8, 9]
    assert (metrics["samples"], metrics["rankable"], metrics["kept"], metrics["dropped"]) == (100, 94, 94, 6)
    assert sum(value for name, value in metrics.items() if name.startswith("dropped.")) == metrics["dropped"]
    assert metrics["dropped.entropy_is_not_finite"] == 2
    assert sorted(table["rank"].drop_nulls().to_list()) == list(range(94))


@pytest.mark.parametrize("score", ["answer", "sentence", "mix"])
def test_the_kept_samples_equal_a_recomputation_in_polars(tmp_path, score):
    rows = pool(200, seed=1)
    table, _ = run(tmp_path, rows, CurateRecipe(score=score, keep=Keep(share=0.15)))
    answer, sentence = pl.col("answer_entropy_nats"), pl.col("sentence_entropy_nats")
    value = {"answer": answer, "sentence": sentence, "mix": answer * sentence}[score]
    expected = pl.DataFrame(rows).sort(value, sentence, "sample_id").head(30)["sample_id"].to_list()
    assert kept_ids(table) == expected


def test_several_generations_count_by_the_mean_over_those_that_are_ok(tmp_path):
    rows = [
        generation(0, 0.4, predicted=2),
        generation(0, 0.2, generation=1, predicted=2),
        generation(0, None, None, generation=2, status="truncated", predicted=None),
        generation(1, None, None, status="truncated", predicted=None),
        generation(1, None, None, generation=1, status="no_answer", predicted=None),
        generation(2, 0.1),
        generation(2, math.nan, generation=1),
        generation(3, 0.25),
        generation(3, 0.25, generation=1, predicted=2),
    ]
    table, metrics = run(tmp_path, rows, CurateRecipe(keep=Keep(share=1.0)))
    assert table["score"].to_list() == [pytest.approx(0.3), None, None, 0.25]
    assert table["reason"].to_list() == ["", "status is no_answer", "entropy is not finite", ""]
    assert kept_ids(table) == ["s-0003", "s-0000"]
    assert metrics["share_predicted_1_kept"] == 0.5


def test_results_do_not_depend_on_where_batches_end(tmp_path, monkeypatch):
    rows = [dict(row, generation=g) for row in pool(60, seed=2) for g in range(3)]
    whole, metrics = run(tmp_path, rows, CurateRecipe(keep=Keep(share=0.5)))
    for size in (1, 2, 5):
        monkeypatch.setattr(sample_scores, "BATCH_ROWS", size)
        cut, cut_metrics = run(tmp_path, rows, CurateRecipe(keep=Keep(share=0.5)))
        assert cut.equals(whole)
        assert cut_metrics == metrics


def test_all_tied_entropies_are_ordered_by_id_with_a_warning(tmp_path):
    rows = [generation(row, 0.5, 0.5, sample_id=f"id-{(row * 37) % 101:03d}") for row in range(100)]
    table, metrics = run(tmp_path, rows, CurateRecipe(keep=Keep(top_k=10)))
    assert kept_ids(table) == sorted(row["sample_id"] for row in rows)[:10]
    assert "equal" in metrics["warning"]
    assert metrics["tie_share"] == 1


def test_balance_keeps_both_answers_in_turn(tmp_path):
    rows = [generation(row, row / 100, predicted=1 if row < 50 else 2) for row in range(100)]
    plain, _ = run(tmp_path, rows, CurateRecipe(keep=Keep(top_k=20)))
    assert kept_ids(plain) == [f"s-{row:04d}" for row in range(20)]
    balanced, metrics = run(tmp_path, rows, CurateRecipe(keep=Keep(top_k=20), balance="predicted"))
    assert kept_ids(balanced)[:4] == ["s-0000", "s-0050", "s-0001", "s-0051"]
    assert metrics["share_predicted_1_kept"] == 0.5
    assert metrics["share_predicted_1_all"] == 0.5


def test_permuted_labels_leave_the_selection_byte_equal(tmp_path):
    rows = pool(100, seed=3)
    for name, shift in (("a", 0), ("b", 1)):
        run(tmp_path / name, rows, CurateRecipe(), labels={row: 1 + (row + shift) % 2 for row in range(100)})
    assert (tmp_path / "a/out/selection.parquet").read_bytes() == (tmp_path / "b/out/selection.parquet").read_bytes()


def test_the_random_baseline_does_not_look_at_entropies_or_the_order_of_rows(tmp_path):
    recipe = CurateRecipe(baseline="random", keep=Keep(share=0.3), seed=5)
    rows = pool(50, seed=4)
    first, _ = run(tmp_path / "a", rows, recipe)
    moved = [dict(rows[49 - row], row=row, answer_entropy_nats=0.1) for row in range(50)]
    second, _ = run(tmp_path / "b", moved, recipe)
    assert kept_ids(first) == kept_ids(second)
    other, _ = run(tmp_path / "c", rows, CurateRecipe(baseline="random", keep=Keep(share=0.3), seed=6))
    assert kept_ids(other) != kept_ids(first)


def test_the_accuracy_baseline_puts_the_lowest_correctness_first(tmp_path):
    right = {0: [1, 1], 1: [1, 2], 2: [2, 2]}  # predictions; the label is 1
    rows = [
        generation(row, 0.1, generation=g, predicted=p) for row, given in right.items() for g, p in enumerate(given)
    ]
    rows.append(generation(3, 0.1))
    rows.append(generation(3, None, None, generation=1, status="truncated", predicted=None))  # counts as wrong
    recipe = CurateRecipe(baseline="accuracy", keep=Keep(share=1.0))
    table, _ = run(tmp_path, rows, recipe, labels=dict.fromkeys(range(4), 1))
    assert table["score"].to_list() == [1.0, 0.5, 0.0, 0.5]
    assert kept_ids(table) == ["s-0002", "s-0001", "s-0003", "s-0000"]


def test_nothing_left_is_a_task_error_and_leaves_no_table(tmp_path):
    rows = [generation(row, None, None, status="truncated", predicted=None) for row in range(3)]
    with pytest.raises(TaskError, match="of 0 samples"):
        run(tmp_path, rows, CurateRecipe())
    with pytest.raises(TaskError, match="topK: 5 samples are asked for, but only 2"):
        run(tmp_path, [generation(0, 0.1), generation(1, 0.2)], CurateRecipe(keep=Keep(top_k=5)))
    assert not (tmp_path / "out/selection.parquet").exists()


def test_rows_out_of_order_and_missing_columns_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="row 1 follows 2"):
        run(tmp_path, [generation(2, 0.1), generation(1, 0.1)], CurateRecipe())
    path = write_entropies(tmp_path / "probe", pool(3))
    pq.write_table(pq.read_table(path).drop_columns(["predicted"]), path)
    with pytest.raises(ArtifactError, match=r"no column \['predicted'\]"):
        curate.select(CurateRecipe(), path)
    path.write_bytes(b"not parquet")
    with pytest.raises(ArtifactError, match="is no Parquet file"):
        curate.select(CurateRecipe(), path)

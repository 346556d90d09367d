"""The maths of a sweep's tables: intervals against closed forms, orderings, and what stands in a reference."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t as student

from build_sweep import scored
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.metrics import wilson
from egt_pipeline.sweep_results import (
    Estimate,
    Layout,
    Reference,
    Row,
    Scored,
    accuracy_by_entropy,
    compare,
    estimate,
    orderings,
    read_reference,
)

NOTHING = Reference("", {})


def row(name: str, low: float, high: float, reference: float) -> Row:
    return Row(name, name, {"overall": Estimate((low + high) / 2, low, high, 3, "seeds")}, {"overall": reference})


def test_several_runs_have_the_t_interval_of_their_mean() -> None:
    # n = 3: mean ± t(0.975, 2) s / sqrt(3), t = 4.302652730; s of .90, .92, .94 is .02.
    found = estimate("accuracy", [scored("a", seed, share) for seed, share in enumerate((0.90, 0.92, 0.94))])
    half = 4.302652730 * 0.02 / np.sqrt(3)
    assert (found.mean, found.runs, found.over) == (pytest.approx(0.92), 3, "seeds")
    assert (found.low, found.high) == (pytest.approx(0.92 - half), pytest.approx(0.92 + half))


def test_an_interval_ends_where_accuracies_do() -> None:
    found = estimate("accuracy", [scored("a", 0, 0.99), scored("a", 1, 0.90)])
    assert (found.low, found.high) == (
        pytest.approx(0.945 - 12.706204736 * 0.045),
        1.0,
    )  # half width t(0.975, 1) s / √2
    assert estimate("accuracy", [scored("a", 0, 0.1), scored("a", 1, 0.9)]).low == 0.0


def test_the_t_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        runs = [Scored("a", n, str(n), {"sft.accuracy": float(x)}) for n, x in enumerate(random.normal(0.8, 0.02, 4))]
        found = estimate("accuracy", runs)
        covered += found.low <= 0.8 <= found.high
    assert 0.935 < covered / 2000 < 0.965  # three standard errors around 0.95


def test_a_single_run_has_the_wilson_interval_of_its_samples() -> None:
    found, expected = estimate("accuracy", [scored("a", 0, 0.9)]), wilson(900, 1000)
    assert found == Estimate(0.9, expected.low, expected.high, 1, "samples")


def test_runs_that_share_their_evaluation_are_one_run() -> None:
    same = [scored("sft", seed, 0.9, digest="one", model="sft") for seed in range(3)]
    assert estimate("accuracy", same) == estimate("accuracy", same[:1])
    assert estimate("accuracy", [*same, scored("sft", 4, 0.9)]).runs == 2


def test_the_figures_are_those_of_the_last_model() -> None:
    assert estimate("accuracy", [scored("a", 0, 0.9)]).mean == 0.9
    assert estimate("accuracy", [scored("a", 0, 0.9, model="sft")]).mean == 0.9


def test_a_column_that_evaluate_does_not_measure_is_refused_with_what_it_measures() -> None:
    with pytest.raises(TaskError, match=r"columns: 'accuracy\.subset\.clear' is no metric of evaluate/a-0; it has a"):
        estimate("accuracy.subset.clear", [scored("a", 0, 0.9)])


def test_a_table_has_its_rows_then_those_that_only_the_reference_has() -> None:
    reference = Reference("paper", {("T", "A"): {"overall": 0.7}, ("T", "C"): {"overall": 0.6}, ("U", "D"): {}})
    layout = Layout("T", "title", None, {"A": "a", "B": "b"})
    found = compare(layout, {"overall": "accuracy"}, [scored("a", 0, 0.9), scored("c", 0, 0.1)], reference)
    assert [(one.name, one.arm, one.runs) for one in found.rows] == [("A", "a", 1), ("B", "b", 0), ("C", None, 0)]
    assert [dict(one.reference) for one in found.rows] == [{"overall": 0.7}, {}, {"overall": 0.6}]
    assert found.has_reference("overall")
    assert not compare(layout, {"overall": "accuracy"}, [], NOTHING).has_reference("overall")


def test_an_order_holds_or_is_reversed_only_where_intervals_are_apart() -> None:
    rows = [row("A", 0.80, 0.82, 0.9), row("B", 0.70, 0.72, 0.8), row("C", 0.71, 0.79, 0.7), row("D", 0.9, 0.91, 0.7)]
    found = orderings(rows, "overall")
    assert found.held == ["A > B", "A > C"]
    assert found.reversed == ["A > D", "B > D"]
    assert found.open == ["B > C"]  # C and D are equal in the reference, so nothing is said of them


def test_a_reference_is_read_in_percent_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("# Somebody, 2026.\n# Table 1.\ntable,row,overall,other\nT,A & B,71.5,\nT,C,70,1\n")
    found = read_reference(path)
    assert found.source == "Somebody, 2026. Table 1."
    assert found.figures == {("T", "A & B"): {"overall": 0.715}, ("T", "C"): {"overall": 0.7, "other": 0.01}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line must begin with table,row"),
        ("row,table,overall\n", "its first line must begin with table,row"),
        ("table,row,overall\nT,A\n", "T,A: has 2 cells; the first line has 3"),
        ("table,row,overall\nT,A,much\n", "T,A,much: a cell is neither empty nor a number in percent"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(TaskError) as caught:
        read_reference(path)
    assert str(caught.value) == f"{path}: {said}"


def test_accuracy_by_entropy_compares_first_generations_with_labels_row_by_row(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows, entropy = random.permutation(200), random.random(200)
    label = random.integers(1, 3, 200)
    wrong = random.random(200) < entropy  # the more entropy, the more often wrong
    predicted = np.where(wrong, 3 - label[rows], label[rows])
    probed = [
        {"row": int(r), "generation": g, "answer_entropy_nats": float(e) if r != 7 else None, "predicted": int(p)}
        for r, e, p in zip(rows, entropy, predicted, strict=True)
        for g in (0, 1)
    ]
    pq.write_table(pa.Table.from_pylist(probed), tmp_path / "entropies.parquet")
    labels = [{"row": n, "label": int(label[n])} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(labels), tmp_path / "preferences.parquet")
    bins = accuracy_by_entropy(tmp_path / "entropies.parquet", tmp_path / "preferences.parquet")
    assert [one.accuracy.count for one in bins] == [20] * 9 + [19]
    lowest = np.argsort(np.where(rows == 7, np.inf, entropy))[:20]
    assert bins[0].accuracy.share == np.mean(~wrong[lowest])
    assert bins[0].accuracy.share > bins[-1].accuracy.share


def test_the_constant_of_the_test_above_is_student_s() -> None:
    assert student.ppf(0.975, 2) == pytest.approx(4.302652730, abs=1e-9)

"""The page of a run: what it says, what it escapes, and that it needs nothing but itself."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build_run import build_run, manifests_of
from egt_pipeline import report_findings
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.recipes import CurateRecipe
from egt_pipeline.metrics import wilson
from egt_pipeline.report import build_report
from egt_pipeline.report_data import Run
from page_elements import Elements


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "store"
    folders = build_run(folder, question="<script>alert(1)</script>")
    return folders, manifests_of(folders), folder / "truth.parquet"


@pytest.fixture(scope="module")
def page(made):
    folders, manifests, truth = made
    return build_report(manifests, folders, truth, "made-up")


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page):
    elements = Elements(page)
    assert elements.open == []
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in elements.loads)
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page


def test_texts_of_the_data_are_escaped(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_every_cited_artifact_is_a_file_of_a_manifest(made, page):
    _, manifests, _ = made
    files = {f"{m.stage}/{m.digest}/{f.path}" for m in manifests.values() for f in (*m.files,)}
    files |= {f"{m.stage}/{m.digest}/manifest.json" for m in manifests.values()}
    cited = Elements(page).sources
    assert cited <= files
    assert {source.partition("/")[0] for source in cited} == {str(stage) for stage in manifests}


def test_the_gate_stands_before_everything_that_it_judges(page):
    assert page.index('id="gate"') < page.index("What ran") < page.index("Known noise")
    assert "the reward alone misleads" in page


def test_all_samples_are_accounted_for_in_every_table(made, page):
    folders, manifests, truth = made
    counts = Run(manifests, folders, truth).counts()
    assert all(table.balanced for table in counts)
    assert [str(table.stage) for table in counts] == ["prepare"] * 3 + ["distill", "probe", "curate", "evaluate"]
    assert page.count("sum; balanced") == len(counts)
    assert "picture is truncated" in page


def test_a_table_that_lost_a_row_does_not_balance(made):
    folders, manifests, truth = made
    prepare = manifests[StageName.PREPARE]
    longer = prepare.model_copy(update={"metrics": {**prepare.metrics, "rl.rows": 601}})
    counts = Run({**manifests, StageName.PREPARE: longer}, folders, truth).counts()
    assert [table.file for table in counts if not table.balanced] == [
        "rl/preferences.parquet",
        "entropies.parquet",
        "selection.parquet",
    ]


def test_without_truth_the_page_says_so_and_shows_no_recovery(made):
    folders, manifests, _ = made
    page = build_report(manifests, folders, None, "made-up")
    assert "No truth was given: recovery of known noise cannot be shown." in page
    assert "AUC of answer entropy" not in page
    assert "truth: clean" not in page


@pytest.mark.parametrize("last", list(StageName))
def test_a_run_that_is_not_finished_has_a_page_too(made, last):
    folders, manifests, truth = made
    done = list(StageName)[: list(StageName).index(last) + 1]
    part = {stage: manifests[stage] for stage in done}
    page = build_report(part, {stage: folders[stage] for stage in done}, truth, "made-up")
    assert Elements(page).open == []
    absent = [str(stage) for stage in StageName if stage not in done]
    assert f"not published yet: {', '.join(absent)}." in page or not absent


def test_the_what_if_table_keeps_what_curate_would(made):
    folders, manifests, truth = made
    probed = Run(manifests, folders, truth).probed
    recipe = CurateRecipe.model_validate(manifests[StageName.CURATE].recipe)
    at_30 = next(row for row in report_findings.what_if(probed, recipe) if row.share == 0.3)
    assert at_30.kept == probed.kept_N.sum()
    assert at_30.highest_score == probed.score_N[probed.kept_N].max()
    assert at_30.agreement_kept.share == probed.agrees[probed.kept_N].mean()
    assert at_30.agreement_dropped.count == probed.ranked.sum() - at_30.kept


def test_the_cut_is_the_highest_kept_score_of_each_predicted_answer(made):
    folders, manifests, truth = made
    probed = Run(manifests, folders, truth).probed
    balanced, plain = CurateRecipe(balance="predicted"), CurateRecipe()
    both = report_findings.cuts(probed, balanced)
    assert set(both) == {"predicted 1", "predicted 2"}
    assert report_findings.cuts(probed, plain) == {"all samples": max(both.values())}
    for answer in (1, 2):
        dropped = probed.ranked & ~probed.kept_N & (probed.predicted_N == answer)
        assert both[f"predicted {answer}"] < probed.score_N[dropped].min()


def test_noise_that_raises_entropy_is_found_and_uniform_flips_are_not(made):
    folders, manifests, truth = made
    rows = {row.name: row for row in report_findings.recovery(Run(manifests, folders, truth).probed)}
    assert rows["undecidable"].auc_answer > 0.95
    assert rows["undecidable"].share_kept < rows["undecidable"].share_dropped
    assert 0.35 < rows["uniform flip"].auc_answer < 0.65


def test_the_disagreement_rule_flags_wrong_labels_more_often_than_chance(made):
    folders, manifests, truth = made
    probed = Run(manifests, folders, truth).probed
    wrong = (probed.gold_N > 0) & (probed.gold_N != probed.label_N)
    lowest_half = report_findings.disagreements(probed)[-1]
    assert lowest_half.precision.low > wrong.mean()
    assert lowest_half.precision.count == lowest_half.flagged


def test_the_verdict_names_what_was_missed_and_what_was_not_measured():
    check = report_findings.Check
    met = check("accuracy", 0.97, "≥ 0.95", True, "predictions")
    missed = check("trend", -0.5, "≤ -0.85", False, "entropies")
    unknown = check("AUC", float("nan"), "≥ 0.85", None, "truth")
    assert report_findings.verdict([met]) == "entropies informative"
    words = report_findings.verdict([met, missed, unknown])
    assert words.startswith("entropies not informative yet, because trend is -0.500, wanted ≤ -0.85")
    assert "AUC could not be measured" in words


def test_the_gate_follows_the_figures(made):
    folders, manifests, truth = made
    probed = Run(manifests, folders, truth).probed
    good = {check.name: check.passed for check in report_findings.gate(probed, wilson(97, 100))}
    assert good["free-generation accuracy, clear held-out samples"] is True
    bad = {check.name: check.passed for check in report_findings.gate(probed, wilson(94, 100))}
    assert bad["free-generation accuracy, clear held-out samples"] is False
    assert report_findings.gate(probed, None)[0].passed is None


def test_examples_are_the_ends_and_the_cut_without_repeats(made):
    folders, manifests, truth = made
    probed = Run(manifests, folders, truth).probed
    found = report_findings.examples(probed, 8)
    places = [place for group in found.values() for place in group]
    assert [len(group) for group in found.values()] == [8, 8, 8]
    assert len(set(places)) == 24
    scores = np.sort(probed.score_N[probed.ranked])
    assert list(probed.score_N[found["lowest"]]) == list(scores[:8])
    assert list(probed.score_N[found["highest"]]) == list(scores[-8:])
    assert {bool(probed.kept_N[place]) for place in found["at the cut"]} == {True, False}


def test_what_the_optimiser_saw_is_counted_against_what_was_kept(made, page):
    folders, manifests, truth = made
    order = folders[StageName.RL] / "order.parquet"
    kept = Run(manifests, folders, truth).probed.kept_N.sum()
    assert f">{kept}</data> kept samples" in page
    assert "samples that were not kept" not in page
    was = order.read_bytes()
    rows = pq.read_table(order).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "sample_id": "rl-stranger"}]), order)
    assert "1 samples that were not kept" in build_report(manifests, folders, truth, "made-up")
    order.write_bytes(was)


def test_without_groups_the_style_bias_is_not_made_up(tmp_path):
    folders = build_run(tmp_path / "store", rows=100)
    predictions = folders[StageName.EVALUATE] / "predictions.parquet"
    table = pq.read_table(predictions)
    none = pa.nulls(len(table), pa.string())
    pq.write_table(table.set_column(table.column_names.index("group"), "group", none), predictions)
    page = build_report(manifests_of(folders), folders, None, "made-up")
    assert "style bias: n/a" in page
    assert re.search(r"style-bias index</td><td><data[^>]*>n/a<", page)


def test_figures_take_their_colours_from_the_page(page):
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 6
    assert all("var(--ink)" in plot and "#01010" not in plot for plot in plots)

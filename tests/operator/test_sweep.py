"""From a sweep file to its runs: each once, different in what is named and nothing else, shared where equal."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from build_manifest import manifest
from build_recipes import CONTENT
from build_sweep import sweep, write_sweep
from egt_operator.api import EGTRun
from egt_operator.manifest_file import load_run
from egt_operator.plan import Task
from egt_operator.sweep import SweepRun, census, expand, tasks_of, waves
from egt_operator.sweep_file import EGTSweep
from egt_operator.sweep_local import read_sweep
from egt_pipeline.contract.chain import chain
from egt_pipeline.contract.graph import StageName

EXAMPLES = sorted((Path(__file__).parents[2] / "crds" / "examples" / "sweeps").glob("*.yaml"))
_FIELDS: dict[str, Any] = {
    "curate.score": st.sampled_from(["answer", "sentence", "mix"]),
    "curate.keep.share": st.sampled_from([0.05, 0.5, 1.0]),
    "curate.keep": st.sampled_from([{"topK": 50}, {"percentile": 15.0}]),
    "rl.order": st.sampled_from(["sorted", "shuffled"]),
    "rl.maxSteps": st.integers(1, 99),
    "sft.learningRate": st.sampled_from([1e-5, 1e-4]),
    "probe.generations": st.sampled_from([1, 8]),
    "data.rl.maxRows": st.integers(1, 99),
    "evaluate.enabled": st.booleans(),
}
overrides = st.fixed_dictionaries({}, optional=_FIELDS).filter(
    lambda fields: not {"curate.keep", "curate.keep.share"} <= set(fields)  # the second would lay itself into the first
)
sweeps = st.builds(
    lambda arms, common, values, fields: EGTSweep.model_validate(
        sweep(arms=arms, common=common, seeds={"fields": sorted(fields), "values": values})
    ),
    st.dictionaries(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True), overrides, min_size=1),
    overrides,
    st.lists(st.integers(0, 999), min_size=1, max_size=3, unique=True),
    st.sets(st.sampled_from(["rl.seed", "sft.seed", "curate.seed"]), min_size=1),
).filter(
    lambda found: not any({"curate.keep", "curate.keep.share"} <= {*found.common, *a} for a in found.arms.values())
)


def base() -> EGTRun:
    return EGTRun.model_validate(manifest())


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The paths at which two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            yield from differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif one != other:
        yield path


def links_of(run: SweepRun, prepared: dict[str, str] | None = None) -> dict[StageName, Any]:
    return chain(run.run.recipes, source_fingerprint="sources", prepared=prepared)


def expand_all(**changes: Any) -> list[SweepRun]:
    return expand(EGTSweep.model_validate(sweep(**changes)), base())


@settings(max_examples=40, deadline=None)
@given(sweeps)
def test_every_arm_runs_once_with_every_seed_under_a_name_of_its_own(found: EGTSweep) -> None:
    runs = expand(found, base())
    assert [(run.seed, run.arm) for run in runs] == list(itertools.product(found.seeds.values, found.arms))
    assert len({run.name for run in runs}) == len(runs)
    assert max(len(run.name) for run in runs) <= 40


@settings(max_examples=40, deadline=None)
@given(sweeps)
def test_a_run_differs_from_the_base_in_the_named_fields_and_in_nothing_else(found: EGTSweep) -> None:
    before = base().model_dump(mode="json", by_alias=True)["spec"]
    for run in expand(found, base()):
        after = run.run.model_dump(mode="json", by_alias=True)["spec"]
        named = {**found.common, **found.arms[run.arm], **dict.fromkeys(found.seeds.fields, run.seed)}
        for path in differences(before, after):
            assert any(path == name or path.startswith(f"{name}.") for name in named), path
        for name, value in named.items():
            at: Any = after
            for step in name.split("."):
                at = at[step]
            assert (at | value if isinstance(value, dict) else value) == at, name


@settings(max_examples=40, deadline=None)
@given(sweeps)
def test_runs_share_a_stage_exactly_where_it_and_all_before_it_are_the_same(found: EGTSweep) -> None:
    runs = expand(found, base())
    # Stand-ins before prepare has run must say the same as the digests afterwards, where equal sources have equal rows.
    contents = {run.name: str(run.run.recipes[StageName.PREPARE].identity) for run in runs}
    for one, other in itertools.combinations(runs, 2):
        for prepared in (False, True):
            tasks = [
                tasks_of(links_of(run, {key: key + contents[run.name] for key in CONTENT} if prepared else None))
                for run in (one, other)
            ]
            for stage in set(tasks[0]) & set(tasks[1]):
                same = lineage(one, stage) == lineage(other, stage)
                assert (tasks[0][stage] == tasks[1][stage]) is same


def lineage(run: SweepRun, stage: StageName) -> list[Any]:
    """The identities of all recipes that a stage's output follows from, by another way than digests."""
    needs = {
        "prepare": [], "distill": ["prepare"], "sft": ["prepare", "distill"], "probe": ["prepare", "sft"],
        "curate": ["probe"], "rl": ["prepare", "sft", "curate"], "evaluate": ["prepare", "sft", "rl"],
    }  # fmt: skip
    recipe = run.run.recipes.get(stage)
    before = [lineage(run, StageName(name)) for name in needs[stage]] if recipe is not None else []
    return [None if recipe is None else recipe.identity, *before]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(list(StageName)), st.sampled_from("abc")), max_size=8))
def test_waves_do_no_costly_task_twice_and_leave_no_run_out(digests: list[dict[StageName, str]]) -> None:
    tasks = [{name: Task(name, digest) for name, digest in run.items()} for run in digests]
    made: set[Task] = set()
    order = waves(tasks)
    assert sorted(itertools.chain(*order)) == list(range(len(tasks)))
    for wave in order:
        costly = [
            {task for task in tasks[place].values() if task.stage not in ("prepare", "curate")} - made for place in wave
        ]
        assert sum(map(len, costly)) == len(set().union(*costly))
        made |= set().union(*costly)


def test_the_first_wave_makes_what_all_share_and_the_second_has_the_rest() -> None:
    runs = expand_all(seeds={"fields": ["rl.seed"], "values": [0, 1, 2]})
    assert [len(wave) for wave in waves([tasks_of(links_of(run)) for run in runs])] == [1, 5]


def test_what_arms_share_is_counted_once() -> None:
    runs = expand_all(arms={"low": {}, "high": {"curate.keep.band": "high"}, "sft": {"rl.enabled": False}})
    tasks = [tasks_of(links_of(run)) for run in runs]
    counts = {str(one.stage): one for one in census(tasks, {tasks[0][StageName.SFT]})}
    assert {name: (one.used, one.distinct, one.published) for name, one in counts.items()} == {
        "prepare": (6, 1, 0),
        "distill": (6, 1, 0),
        "sft": (6, 1, 1),
        "probe": (6, 1, 0),
        "curate": (6, 2, 0),
        "rl": (4, 4, 0),
        "evaluate": (6, 5, 0),
    }


def test_a_run_can_be_written_as_a_manifest_and_read_again(tmp_path: Path) -> None:
    for run in expand_all(common={"rl.maxSteps": 3, "curate.keep": {"topK": 9}}):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(run.run.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
        assert load_run(path) == run.run


def test_an_arm_can_take_away_what_the_base_has(tmp_path: Path) -> None:
    base_with = manifest(sft__lora={"rank": 4})
    document = sweep(arms={"adapters": {}, "full": {"sft.lora": None}}, seeds={"fields": ["rl.seed"], "values": [0]})
    _, runs = read_sweep(write_sweep(tmp_path, document, base_with))
    assert {run.arm: run.run.spec.sft.lora is not None for run in runs} == {"adapters": True, "full": False}


def test_labels_tell_sweep_and_arm() -> None:
    run = expand_all()[0].run
    assert run.metadata.labels == {"egt.dev/sweep": "grid", "egt.dev/arm": "low"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_expands(path: Path) -> None:
    found, runs = read_sweep(path)
    assert found.metadata.name == path.stem
    assert len(runs) == len(found.arms) * len(found.seeds.values)
    tabled = {arm for table in found.tables for arm in table.rows.values()}
    assert tabled == set(found.arms), "an arm that no table shows is paid for nothing"


def test_the_paper_s_tables_are_complete_in_the_example() -> None:
    path = next(path for path in EXAMPLES if path.name == "digits.yaml")
    rows = {(table.name, row) for table in read_sweep(path)[0].tables for row in table.rows}
    lines = (path.parent / "egt-paper.csv").read_text().splitlines()
    printed = {tuple(line.split(",")[:2]) for line in lines if not line.startswith(("#", "table,"))}
    assert printed < rows, "all that is printed, and the points of Fig. 4 that are not"

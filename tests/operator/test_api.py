"""EGTRun as a type: what is accepted, what is refused and by which name, and which recipes come out."""

from typing import Any

import pytest
from pydantic import ValidationError

from build_manifest import manifest
from egt_operator.api import EGTRun, OptionalStage, PrepareStage
from egt_operator.api_status import EGTRunStatus
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.graph import STAGE_TYPES, STAGES, StageName, inputs_of
from egt_pipeline.contract.recipes import PrepareOptions, PrepareRecipe
from egt_pipeline.contract.task import digest


def run(**changes: Any) -> EGTRun:
    return EGTRun.model_validate(manifest(**changes))


def test_a_minimal_manifest_enables_every_stage_in_the_order_of_the_graph() -> None:
    recipes = run().recipes
    assert list(recipes) == [stage.name for stage in STAGES]
    assert {name: type(recipe) for name, recipe in recipes.items()} == {s.name: s.recipe for s in STAGES}
    for name in recipes:
        assert {need.stage for need in inputs_of(name, recipes).values()} <= set(recipes)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.name is not StageName.PREPARE])
def test_a_block_carries_every_field_of_its_recipe_and_the_value_reaches_it(stage: Any) -> None:
    block = run().spec.stage(stage.name)
    assert isinstance(block, OptionalStage)
    recipe = block.recipe()
    assert type(recipe) is stage.recipe
    assert {n: getattr(recipe, n) for n in stage.recipe.model_fields} == {
        n: getattr(block, n) for n in stage.recipe.model_fields
    }


def test_prepare_reads_the_model_and_the_data_of_the_run() -> None:
    spec = run(prepare__seed=7).spec
    recipe = spec.recipes[StageName.PREPARE]
    assert isinstance(recipe, PrepareRecipe)
    assert (recipe.model, recipe.data, recipe.seed) == (spec.model, spec.data, 7)
    assert set(PrepareStage.model_fields) - set(PrepareOptions.model_fields) == {"resources"}


@pytest.mark.parametrize("teacher_stays", [True, False])
def test_without_distill_the_data_must_bring_responses(teacher_stays: bool) -> None:
    distill = {"enabled": False, **({"teacher": {"model": "t"}} if teacher_stays else {})}
    recipes = run(distill=distill).recipes
    prepare = recipes[StageName.PREPARE]
    assert StageName.DISTILL not in recipes
    assert isinstance(prepare, PrepareRecipe)
    assert prepare.need_responses


def test_where_a_stage_runs_is_no_part_of_its_digest() -> None:
    def sft(**changes: Any) -> str:
        recipe: Recipe = run(**changes).recipes[StageName.SFT]
        return digest(StageName.SFT, STAGE_TYPES[StageName.SFT].revision, recipe, {})

    asked = {"gpu": 1, "memory": "64Gi", "cpu": 4}
    assert sft(sft__processes=2, sft__pods=2, sft__resources=asked, sft__checkpointSteps=7) == sft()
    assert sft(sft__learningRate=0.5) != sft()


REFUSED: dict[str, dict[str, Any]] = {
    "spec.sft.enabled": {"sft__enabled": False},
    "spec.probe.enabled": {"probe__enabled": False},
    "spec.curate.enabled": {"curate__enabled": False},
    "data.evaluate: is empty": {"data__evaluate": []},
    "curate.baseline: accuracy needs probe.generations >= 2": {"curate__baseline": "accuracy"},
    "evaluate: each source needs a name of its own": {"data__evaluate": [{"source": "a"}, {"source": "b"}]},
    "teacher: is missing": {"distill": {}},
    "batchSize: 30 is no multiple of microBatchSize 8": {"sft__batchSize": 30},
    "batchSize: 24 is no multiple of microBatchSize 8 x processes 2": {"sft__batchSize": 24, "sft__processes": 2},
    "batchSize: 8 is no multiple of microBatchSize 8 x processes 3": {
        "rl__batchSize": 8,
        "rl__processes": 3,
    },
    "pods: 3 does not divide processes 2": {"sft__processes": 2, "sft__pods": 3, "sft__microBatchSize": 1},
    "resources.gpu: 8 is not accepted; the 1 processes of a pod": {"rl__resources": {"gpu": 8}},
    "exactly one of share, topK, percentile is needed": {"curate__keep": {"share": 0.1, "topK": 3}},
    "percentile keeps the low end only": {"curate__keep": {"percentile": 30, "band": "high"}},
    "endpoint: given exactly when kind is 'endpoint'": {"rl__judge": {"kind": "endpoint"}},
    "source: 'https://huggingface.co/org/model' is neither a path, file://, s3:// nor hf://; a repository of": {
        "model__source": "https://huggingface.co/org/model"
    },
    "is neither a path, file://, s3:// nor hf://": {"data__rl__source": "gs://bucket/rl.jsonl"},
    "source: 'hf://Qwen' is no hf://organisation/name": {"model__source": "hf://Qwen", "model__revision": "0" * 40},
    "a hf:// model needs the commit": {"model__source": "hf://org/model"},
    "a hf:// dataset needs the commit": {"data__sft__source": "hf://org/data"},
    "key: is missing; only operator Exists": {"scheduling__tolerations": [{"operator": "Equal"}]},
    "value: 'b' is not accepted": {"scheduling__tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
    "tolerationSeconds: 3 is not accepted": {"scheduling__tolerations": [{"key": "a", "tolerationSeconds": 3}]},
    "nodeSelector.a b.[key]": {"scheduling__nodeSelector": {"a b": "x"}},
    "adamBetas.1\n  Input should be less than 1": {"sft__adamBetas": [0.9, 98]},
    "uri: 'gs://bucket' is neither": {"store__uri": "gs://bucket"},
    "names a host": {"store__uri": "file://runs/digits"},
}


@pytest.mark.parametrize(("words", "changes"), REFUSED.items(), ids=REFUSED)
def test_an_impossible_combination_is_refused_by_the_name_of_its_field(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        run(**changes)
    assert words in str(caught.value)


def test_stages_that_nothing_needs_can_be_left_out() -> None:
    only_selection = run(rl__enabled=False, evaluate__enabled=False, data__evaluate=[])
    assert list(only_selection.recipes) == ["prepare", "distill", "sft", "probe", "curate"]
    off = {f"{name}__enabled": False for name in ("distill", "sft", "probe", "curate", "rl", "evaluate")}
    assert list(run(**off).recipes) == ["prepare"]


def test_the_accuracy_baseline_is_accepted_with_several_generations() -> None:
    assert run(curate__baseline="accuracy", probe__generations=8).spec.curate.baseline == "accuracy"


@pytest.mark.parametrize("name", ["Digits", "1digits", "digits-", "di_gits", "d" * 41, ""])
def test_a_name_that_children_cannot_carry_is_refused(name: str) -> None:
    document = manifest()
    document["metadata"]["name"] = name
    with pytest.raises(ValidationError, match="name"):
        EGTRun.model_validate(document)


@pytest.mark.parametrize("uri", ["runs/digits", "/data/egt", "file:///data/egt", "s3://bucket", "s3://bucket/a/b"])
def test_a_store_is_a_path_or_a_file_or_s3_uri(uri: str) -> None:
    assert run(store__uri=uri).spec.store.uri == uri


def test_a_status_of_a_newer_operator_is_read_without_what_is_new_in_it() -> None:
    failure = {"class": "Hang", "attempt": 1, "time": "2026-01-01T00:00:00Z"}
    stage = {"name": "sft", "phase": "Running", "lastFailure": failure, "colour": "green"}
    status = EGTRunStatus.model_validate({"phase": "Running", "stages": [stage], "mood": "good"})
    assert status.stages[0].last_failure is not None
    assert status.stages[0].last_failure.kind == "Hang"

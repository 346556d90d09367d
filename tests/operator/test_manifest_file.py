"""Reading a manifest: every mistake is answered with the file, the line, the field and what would be accepted."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from build_manifest import manifest
from build_sweep import sweep
from egt_operator.api import EGTRun, RLStage, SFTStage
from egt_operator.manifest_file import MAX_BYTES, load_run
from egt_pipeline.contract.errors import TaskError

EXAMPLES = sorted((Path(__file__).parents[2] / "crds" / "examples").glob("*.yaml"))


def refusal(path: Path, text: str | bytes) -> str:
    """What is said of a file with this text."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(TaskError) as caught:
        load_run(path)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def test_there_are_examples() -> None:
    assert [path.name for path in EXAMPLES if path.name == "digits.yaml"] == ["digits.yaml"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted_and_named_after_its_file(path: Path) -> None:
    assert load_run(path).metadata.name == path.stem


def test_a_field_that_is_null_has_its_default_as_on_the_api_server(file: Path) -> None:
    file.write_text(yaml.safe_dump(manifest()) + "  sft: null\n  rl: {batchSize: null, lora: null}\n")
    spec = load_run(file).spec
    assert (spec.sft, spec.rl) == (SFTStage(), RLStage())


def test_a_mistyped_field_is_named_although_it_is_null(file: Path) -> None:
    said = refusal(file, yaml.safe_dump(manifest()) + "  rl: {epoch: null}\n")
    assert "spec.rl.epoch: is no field here; did you mean epochs?" in said


def test_a_number_with_an_exponent_is_a_number(file: Path) -> None:
    file.write_text(yaml.safe_dump(manifest()) + "  sft: {learningRate: 1e-5}\n")
    assert load_run(file).spec.sft.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("sft: {lerningRate: 1}", "spec.sft.lerningRate: is no field here; did you mean learningRate?"),
        ("sft: {max_steps: 1}", "spec.sft.max_steps: is no field here; did you mean maxSteps?"),
        ("prob: {workers: 1}", "spec.prob: is no field here; did you mean probe?"),
        ("curate: {zzz: 1}", "spec.curate.zzz: is no field here; known are score, baseline, keep"),
        ("probe: {prompt: egt}", "spec.probe.prompt: 'egt' is not accepted; it must be 'egt-v1' or 'plain-v1'"),
        ("rl: {learningRate: -1}", "spec.rl.learningRate: -1 is not accepted; it should be greater than 0"),
        ("rl: {judge: {endpoint: {}}}", "spec.rl.judge.endpoint.model: is missing; Name of the model"),
        ("rl: {judge: {kind: endpoint}}", "spec.rl.judge.endpoint: given exactly when kind is 'endpoint'"),
        ("curate: {keep: {}}", "spec.curate.keep: exactly one of share, topK, percentile is needed, got none"),
        ("curate: {keep: {percentile: 5, band: mid}}", "spec.curate.keep.band: percentile keeps the low end only"),
        (
            "scheduling: {nodeAffinity: [{key: zone}]}",
            "spec.scheduling.nodeAffinity[0].values: [] is not accepted; operator In takes at least one value",
        ),
        ("sft: {adamBetas: [0.9]}", "spec.sft.adamBetas[1]: is missing"),
        ("sft: {batchSize: 30}", "spec.sft.batchSize: 30 is no multiple of microBatchSize 8"),
        ("curate: {baseline: accuracy}", "spec.curate.baseline: accuracy needs probe.generations >= 2"),
        ("probe: {enabled: false}", "spec.probe.enabled: is false, but curate needs it"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_would_be_accepted(file: Path, block: str, said: str) -> None:
    text = yaml.safe_dump(manifest()) + f"  {block}\n"
    message = refusal(file, text)
    assert message.partition(": ")[2].startswith(said), message
    whole_spec = said.startswith(("spec.curate.baseline", "spec.probe.enabled"))  # about several blocks: spec's line
    expected = text.splitlines().index("spec:") + 1 if whole_spec else len(text.splitlines())
    assert message.startswith(f"{file}:{expected}: ")


def test_all_mistakes_are_said_at_once(file: Path) -> None:
    document = manifest(sft__epochs=0, rl__epochs="many", data__evaluate=[{"source": "a", "splitt": "b"}])
    lines = refusal(file, yaml.safe_dump(document)).splitlines()
    fields = sorted(line.split(": ")[1] for line in lines)
    assert fields == ["spec.data.evaluate[0].splitt", "spec.rl.epochs", "spec.sft.epochs"]


def test_a_flood_of_mistakes_is_cut(file: Path) -> None:
    lines = refusal(file, "".join(f"k{number}: 1\n" for number in range(100))).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 84 more")  # 100 and the four that are missing, less 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n---\nb: 2\n", ":2: holds several documents"),
        ("a: 1\nb: {c: 1, c: 2}\n", ":2: 'c' is given twice"),
        ("a: 1\na: 1\n", ":2: 'a' is given twice"),
        ("a: &x [1, 2]\nb: [*x, *x]\n", ":2: aliases (*name) are not accepted"),
        ("a: " + "[" * 50_000, ":1: is nested more than 32 deep"),
        ("a: !!python/object/apply:os.system [ls]\n", ":1: could not determine a constructor"),
        ("a: " + "9" * 5000, ": Exceeds the limit"),
        ("a: 2026-13-45\n", ": month must be in 1..12"),
        ("a:\n\tb: 1\n", ":2: found character"),
        ("", ": holds no EGTRun"),
        ("- 1\n", ": holds no EGTRun"),
        (b"a: \x00\n", ": unacceptable character"),
        (b"a: \xff\n", ": byte 3 is not UTF-8"),
    ],
)
def test_what_is_no_manifest_is_refused_with_a_reason(file: Path, text: str | bytes, said: str) -> None:
    assert refusal(file, text).startswith(f"{file}{said}")


def test_a_sweep_where_a_run_is_expected_is_told_in_one_line_with_its_command(file: Path) -> None:
    said = refusal(file, yaml.safe_dump(sweep()))
    assert said == f"{file}: kind: 'EGTSweep' is not an EGTRun; use: egt sweep plan {file}"


def test_what_the_api_server_adds_to_metadata_is_accepted_and_ignored(file: Path) -> None:
    document = manifest()
    plain = EGTRun.model_validate(document)
    document["metadata"] |= {
        "creationTimestamp": datetime(2026, 1, 1, tzinfo=UTC), "deletionGracePeriodSeconds": 0, "finalizers": ["a/b"],
        "deletionTimestamp": "2026-01-02T00:00:00Z", "generation": 1, "resourceVersion": "7", "selfLink": "/apis",
        "uid": "6f0c", "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {".": {}}}}],
        "ownerReferences": [{"kind": "Sweep", "uid": "1"}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    assert load_run(file) == plain


def test_a_misspelt_field_of_metadata_is_refused_beside_those_of_the_api_server(file: Path) -> None:
    document = manifest()
    document["metadata"] |= {"uid": "6f0c", "generations": 1, "label": {}}
    lines = refusal(file, yaml.safe_dump(document)).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["metadata.generations", "metadata.label"]


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(file: Path) -> None:
    started = time.process_time()
    assert "is larger than" in refusal(file, b"a: [" + b"x, " * (MAX_BYTES // 2))
    assert time.process_time() - started < 0.5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"absent\.yaml: cannot be read: No such file"):
        load_run(tmp_path / "absent.yaml")


def test_the_example_for_a_laptop_writes_where_the_demo_expects_it() -> None:
    spec = load_run(next(path for path in EXAMPLES if path.name == "digits.yaml")).spec
    assert (spec.store.uri, spec.model.source) == ("runs/digits", "runs/digits/model")
    prompts = {spec.distill.prompt, spec.sft.prompt, spec.probe.prompt, spec.rl.prompt, spec.evaluate.prompt}
    assert prompts == {"plain-v1"}  # a model answers in the words it was taught in

"""The PyTorchJob of an attempt: restricted, by reference, and nothing left to chance."""

import json
from pathlib import Path
from typing import Any

import pytest

from build_egtrun import SETTINGS, egtrun, prepared_status, stage_at_work
from egt_operator.api import EGTRun
from egt_operator.manifest_file import load_run
from egt_operator.outcome import links_of
from egt_operator.render import TASK_ANNOTATION, Owner, gpus_of, pods_of, render
from egt_operator.task import task_of
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import TaskFile

OWNER = Owner("digits", "team", "uid-1")


def job(stage: StageName = StageName.PREPARE, **spec: Any) -> dict[str, Any]:
    run = EGTRun.model_validate(egtrun(**spec))
    task = task_of(run, stage_at_work(stage), links_of(run, prepared_status()), SETTINGS)
    return render(run, OWNER, task, SETTINGS)


def pod(found: dict[str, Any], kind: str = "Master") -> dict[str, Any]:
    template: dict[str, Any] = found["spec"]["pytorchReplicaSpecs"][kind]["template"]
    return template


def test_names_and_labels_say_run_stage_and_attempt() -> None:
    found = job(StageName.SFT)
    assert found["metadata"]["name"] == "digits-sft-a2"
    assert found["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert pod(found)["metadata"]["labels"]["egt.dev/attempt"] == "2"


def test_the_task_is_in_the_pod_and_its_stage_can_read_it() -> None:
    task = TaskFile.model_validate_json(pod(job(StageName.PROBE))["metadata"]["annotations"][TASK_ANNOTATION])
    assert (task.stage, task.attempt, task.inputs["model"].stage) == ("probe", 2, "sft")
    assert json.loads(pod(job())["metadata"]["annotations"][TASK_ANNOTATION])["digest"] == "d"


def test_the_task_names_the_gpus_that_its_pod_asks_for() -> None:
    found = pod(job(StageName.SFT, sft={"processes": 4}))
    task = TaskFile.model_validate_json(found["metadata"]["annotations"][TASK_ANNOTATION])
    assert task.gpus == 4
    assert found["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_the_pod_fits_the_restricted_standard() -> None:
    spec = pod(job())["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False
    assert {next(iter(v.keys() - {"name"})) for v in spec["volumes"]} <= {"emptyDir", "downwardAPI", "secret"}


def everything() -> dict[str, Any]:
    """A spec that uses every field with which a user can reach a pod."""
    endpoint = {"model": "m", "baseUrl": "http://m/v1", "apiKeyEnv": "M_KEY", "apiKeySecret": "m"}
    return {
        "podTemplate": {"labels": {"team": "a", "egt.dev/run": "other"}, "annotations": {TASK_ANNOTATION: "{}"}},
        "store": {"uri": "s3://b/p", "credentialsSecret": "store", "caSecret": "ca"},
        "distill": {"teacher": endpoint, "resources": {"cpu": 2, "memory": "4Gi", "gpu": 0}},
        "rl": {"judge": {"kind": "endpoint", "endpoint": endpoint}, "processes": 4, "resources": {"gpu": 4}},
        "scheduling": {
            "priorityClass": "high",
            "nodeSelector": {"pool": "h200"},
            "nodeAffinity": [{"key": "zone", "operator": "In", "values": ["a"]}],
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    }


def places(value: Any) -> set[str]:
    """Every field in a part of a pod, by its path; names of labels and resources are a user's and left out."""
    if isinstance(value, list):
        return {place for item in value for place in places(item)}
    if not isinstance(value, dict):
        return set()
    own = {"limits", "requests", "nodeSelector"}
    inside = {f"{name}.{place}" for name, item in value.items() if name not in own for place in places(item)}
    return {name for name, item in value.items() if name in own or not places(item)} | inside


def test_no_manifest_says_more_of_a_pod_than_this() -> None:
    """No host path, no host network, no further container, no privilege: what pod_fields.txt lacks is not there."""
    allowed = Path(__file__).with_name("pod_fields.txt").read_text().split()
    found = [pod(job(stage, **everything())) for stage in StageName]
    assert {place for one in found for place in places(one["spec"])} == set(allowed)
    for one in found:
        assert [container["name"] for container in one["spec"]["containers"]] == ["pytorch"]
        assert one["metadata"]["labels"]["egt.dev/run"] == "digits"
        assert one["metadata"]["annotations"][TASK_ANNOTATION] != "{}"


def test_secrets_are_named_and_never_read() -> None:
    teacher = {"model": "t", "baseUrl": "http://t/v1", "apiKeyEnv": "TEACHER_KEY", "apiKeySecret": "teacher"}
    environment = pod(job(StageName.DISTILL, distill={"teacher": teacher}))["spec"]["containers"][0]["env"]
    references = {e["name"]: e["valueFrom"]["secretKeyRef"]["name"] for e in environment if "valueFrom" in e}
    assert references == {"AWS_ACCESS_KEY_ID": "store", "AWS_SECRET_ACCESS_KEY": "store", "TEACHER_KEY": "teacher"}
    others = pod(job(StageName.SFT, distill={"teacher": teacher}))["spec"]["containers"][0]["env"]
    assert "TEACHER_KEY" not in {e["name"] for e in others}


def test_the_key_of_a_tracking_service_reaches_the_two_trainings_alone() -> None:
    tracking = {"service": "mlflow", "address": "https://mlflow.example", "apiKeySecret": "figures"}
    named = {
        stage: {
            e["name"]: e.get("valueFrom") for e in pod(job(stage, tracking=tracking))["spec"]["containers"][0]["env"]
        }
        for stage in StageName
    }
    holders = {stage for stage, environment in named.items() if "MLFLOW_TRACKING_TOKEN" in environment}
    assert holders == {StageName.SFT, StageName.RL}
    key = {"secretKeyRef": {"name": "figures", "key": "MLFLOW_TRACKING_TOKEN"}}
    assert named[StageName.SFT]["MLFLOW_TRACKING_TOKEN"] == key


@pytest.mark.parametrize("size", [24, 80])
def test_profiles_for_one_gpu_need_one_and_train_adapters(size: int) -> None:
    run = load_run(Path(__file__).parents[2] / "crds" / "examples" / f"one-gpu-{size}gb.yaml")
    assert max(gpus_of(run, stage) * pods_of(run, stage) for stage in StageName) == 1
    assert run.spec.sft.lora is not None
    assert run.spec.rl.lora is not None


def test_a_probe_of_three_workers_is_one_job_of_three_pods_with_a_gpu_each() -> None:
    found = job(StageName.PROBE, probe={"workers": 3})
    assert found["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
    for kind in ("Master", "Worker"):
        assert pod(found, kind)["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_a_training_over_pods_has_the_gpus_of_its_own_processes_in_each() -> None:
    found = job(StageName.SFT, sft={"processes": 8, "pods": 2, "batchSize": 64, "microBatchSize": 8})
    assert found["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    task = TaskFile.model_validate_json(pod(found, "Worker")["metadata"]["annotations"][TASK_ANNOTATION])
    assert (task.workers, task.processes) == (2, 8)
    for kind in ("Master", "Worker"):
        assert pod(found, kind)["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def test_requirements_of_nodes_become_their_affinity() -> None:
    gpus = {"key": "nvidia.com/gpu.product", "values": ["H100", "H200"]}
    affinity = pod(job(scheduling={"nodeAffinity": [gpus]}))["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{**gpus, "operator": "In"}]}


def test_stages_without_a_model_ask_for_no_gpu() -> None:
    assert pod(job(StageName.CURATE))["spec"]["containers"][0]["resources"] == {}


def test_the_node_pool_and_the_queue_reach_the_job() -> None:
    scheduling = {"queue": "gpus", "priorityClass": "high", "nodeSelector": {"pool": "a100"},
                  "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]}  # fmt: skip
    found = job(StageName.SFT, scheduling=scheduling)
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert found["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert "suspend" not in found["spec"]["runPolicy"]
    spec = pod(found)["spec"]
    assert spec["nodeSelector"] == {"pool": "a100"}
    assert spec["tolerations"][0] == {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_the_operator_counts_attempts_alone() -> None:
    found = job(StageName.SFT)["spec"]
    assert found["runPolicy"] == {"cleanPodPolicy": "Running"}
    assert found["pytorchReplicaSpecs"]["Master"]["restartPolicy"] == "Never"

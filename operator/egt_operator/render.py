"""One attempt of one stage as a PyTorchJob: every name, label, volume and limit of what the operator makes. Pure.

A child is created once and never applied again: Kueue owns its ``suspend`` and adds to its pod template. The task
travels as an annotation of the pod and reaches the container as a file, so no ConfigMap has to be made or removed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from egt_operator.api import EGTRun, ProbeStage, RLStage, SFTStage
from egt_operator.api_parts import Resources
from egt_operator.settings import Settings
from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.task import TaskFile

API_VERSION = "kubeflow.org/v1"
RUN_LABEL, STAGE_LABEL, ATTEMPT_LABEL = "egt.dev/run", "egt.dev/stage", "egt.dev/attempt"
TASK_ANNOTATION = "egt.dev/task"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
CONTAINER = "pytorch"  # training-operator refuses any other name
GPU = "nvidia.com/gpu"
TASK_FOLDER, SCRATCH, CACHE, CA_FOLDER = "/etc/egt/task", "/scratch", "/cache", "/etc/egt/ca"
SUMMARY = "/dev/termination-log"
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class Owner:
    """The EGTRun an attempt belongs to."""

    name: str
    namespace: str
    uid: str


def job_name(run: str, stage: StageName, attempt: int) -> str:
    """The name of an attempt: deterministic, so that creating it twice is noticed."""
    return f"{run}-{stage}-a{attempt}"


def gpus_of(run: EGTRun, stage: StageName) -> int:
    """GPUs of one pod of the stage."""
    block = run.spec.stage(stage)
    if block.resources.gpu is not None:
        return block.resources.gpu
    if isinstance(block, SFTStage | RLStage):
        return block.processes
    return 1 if STAGE_TYPES[stage].gpu else 0


def pods_of(run: EGTRun, stage: StageName) -> int:
    """How many pods the stage runs in: a probe in one for each worker, everything else in one."""
    block = run.spec.stage(stage)
    return block.workers if isinstance(block, ProbeStage) else 1


def render(run: EGTRun, owner: Owner, task: TaskFile, settings: Settings) -> dict[str, Any]:
    """The PyTorchJob of the attempt that ``task`` describes."""
    labels = {
        RUN_LABEL: owner.name,
        STAGE_LABEL: str(task.stage),
        ATTEMPT_LABEL: str(task.attempt),
        "app.kubernetes.io/managed-by": "egt-operator",
    }
    template = _pod(run, task, settings, labels)
    pods = pods_of(run, task.stage)
    replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    if pods > 1:
        replicas["Worker"] = {"replicas": pods - 1, "restartPolicy": "Never", "template": template}
    return {
        "apiVersion": API_VERSION,
        "kind": "PyTorchJob",
        "metadata": {
            "name": job_name(owner.name, task.stage, task.attempt),
            "namespace": owner.namespace,
            "labels": {**labels, **_queue(run)},
            "ownerReferences": [_reference(owner)],
        },
        # The operator counts attempts: training-operator's own retries neither count nor stop (see README).
        "spec": {"runPolicy": {"cleanPodPolicy": "Running"}, "nprocPerNode": "1", "pytorchReplicaSpecs": replicas},
    }


def _reference(owner: Owner) -> dict[str, Any]:
    from egt_operator.api import GROUP, KIND, VERSION

    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _queue(run: EGTRun) -> dict[str, str]:
    scheduling = run.spec.scheduling
    if scheduling.queue is None:
        return {}
    priority = {PRIORITY_LABEL: scheduling.priority_class} if scheduling.priority_class else {}
    return {QUEUE_LABEL: scheduling.queue, **priority}


def _pod(run: EGTRun, task: TaskFile, settings: Settings, labels: Mapping[str, str]) -> dict[str, Any]:
    overlay, scheduling = run.spec.pod_template, run.spec.scheduling
    in_queue = scheduling.queue is not None
    spec = {
        "containers": [_container(run, task, settings)],
        "volumes": _volumes(run, settings),
        "automountServiceAccountToken": False,  # a stage never speaks to the API server
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "terminationGracePeriodSeconds": settings.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.pod_security_user,
            "runAsGroup": settings.pod_security_user,
            "fsGroup": settings.pod_security_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [
            *(t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in scheduling.tolerations),
            *(_until_lost(key, settings) for key in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")),
        ],
        **_affinity(run),
        # In a queue the class is Kueue's own WorkloadPriorityClass, on the job.
        **({"priorityClassName": scheduling.priority_class} if scheduling.priority_class and not in_queue else {}),
    }
    annotations = {**overlay.annotations, TASK_ANNOTATION: task.model_dump_json()}
    return {"metadata": {"labels": {**overlay.labels, **labels}, "annotations": annotations}, "spec": spec}


def _affinity(run: EGTRun) -> dict[str, Any]:
    wanted = run.spec.scheduling.node_affinity
    if not wanted:
        return {}
    terms = [{"matchExpressions": [one.model_dump(mode="json") for one in wanted]}]
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    }


def _until_lost(key: str, settings: Settings) -> dict[str, Any]:
    """How long a pod stays on a node that does not answer; Kubernetes would say five minutes."""
    seconds = int(settings.lost_node_seconds)
    return {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}


def _container(run: EGTRun, task: TaskFile, settings: Settings) -> dict[str, Any]:
    stage = task.stage
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        # No command: the entry point is the image's, an init process among it that reaps what a stage leaves behind.
        "args": [str(stage), "--task", f"{TASK_FOLDER}/task.json"],
        "env": _environment(run, task),
        "resources": _resources(run.spec.stage(stage).resources, gpus_of(run, stage)),
        "volumeMounts": _mounts(run),
        "workingDir": SCRATCH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _environment(run: EGTRun, task: TaskFile) -> list[dict[str, Any]]:
    plain = {
        "HOME": SCRATCH,
        "HF_HOME": f"{CACHE}/huggingface",
        "VLLM_CACHE_ROOT": f"{CACHE}/vllm",  # what it finds out about a model costs it a minute the first time
        "EGT_ATTEMPT": str(task.attempt),
        "USER": "egt",  # torch asks for the name of a user that no passwd file knows
    }
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    if secret := run.spec.store.credentials_secret:
        found += [_from_secret(key, secret) for key in _KEYS]
    for endpoint in _endpoints(run, task.stage):
        if endpoint.api_key_secret:
            found.append(_from_secret(endpoint.api_key_env, endpoint.api_key_secret))
    tracking = run.spec.tracking
    if tracking and tracking.api_key_secret and task.stage in (StageName.SFT, StageName.RL):
        found.append(_from_secret(tracking.key_variable, tracking.api_key_secret))
    return found


def _from_secret(key: str, secret: str) -> dict[str, Any]:
    return {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _endpoints(run: EGTRun, stage: StageName) -> list[Endpoint]:
    """The services that the stage speaks to."""
    spec = run.spec
    named = {StageName.DISTILL: spec.distill.teacher, StageName.RL: spec.rl.judge.endpoint}
    return [endpoint for name, endpoint in named.items() if name is stage and endpoint is not None]


def _resources(wanted: Resources, gpus: int) -> dict[str, Any]:
    amounts: dict[str, str] = {}
    if wanted.cpu is not None:
        amounts["cpu"] = f"{wanted.cpu:g}"
    if wanted.memory is not None:
        amounts["memory"] = wanted.memory
    if gpus:
        amounts[GPU] = str(gpus)
    return {"requests": amounts, "limits": amounts} if amounts else {}


def _volumes(run: EGTRun, settings: Settings) -> list[dict[str, Any]]:
    field = {"path": "task.json", "fieldRef": {"fieldPath": f"metadata.annotations['{TASK_ANNOTATION}']"}}
    cache = {"persistentVolumeClaim": {"claimName": settings.cache_claim}} if settings.cache_claim else {"emptyDir": {}}
    found: list[dict[str, Any]] = [
        {"name": "task", "downwardAPI": {"items": [field]}},
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch_size}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory_size}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", **cache},
    ]
    if run.spec.store.ca_secret:
        found.append({"name": "ca", "secret": {"secretName": run.spec.store.ca_secret}})
    return found


def _mounts(run: EGTRun) -> list[dict[str, Any]]:
    places = {"task": TASK_FOLDER, "scratch": SCRATCH, "shm": "/dev/shm", "tmp": "/tmp", "cache": CACHE}
    if run.spec.store.ca_secret:
        places["ca"] = CA_FOLDER
    return [{"name": name, "mountPath": path} for name, path in places.items()]

"""Parts of a run's spec that say where it runs: resources, store, scheduling, retries, removal."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from egt_pipeline.contract.base import Placement, Recipe

DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
# A child is called <run>-<stage>-a<attempt> and its pods <child>-worker-<n>: 40 leaves 23 of a label's 63 characters.
NAME_LENGTH = 40
SIZE = r"^[1-9][0-9]*(Mi|Gi|Ti)$"
"""Amounts of memory and disk, as in 64Gi."""

Attempts = Annotated[int, Field(ge=0, le=1000)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
LabelKey = Annotated[
    str,
    Field(max_length=317, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"),
]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class Metadata(Recipe):
    """Which run this is."""

    name: str = Field(pattern=DNS_LABEL, max_length=NAME_LENGTH)
    """Name of the run: lower-case letters, digits and dashes, at most 40, a letter first."""
    namespace: str | None = Field(default=None, max_length=63)
    """Namespace of the run; no meaning on a machine without a cluster."""
    labels: dict[str, LabelValue] = Field(default={})
    """Labels of the run; not passed on to its pods."""
    annotations: dict[str, str] = Field(default={})
    """Annotations of the run; not passed on to its pods."""


class Resources(Recipe):
    """What one pod asks for. Requests equal limits. No meaning on a machine without a cluster."""

    cpu: float | None = Field(default=None, gt=0, le=4096)
    """CPU cores; null leaves them to the cluster's defaults."""
    memory: str | None = Field(default=None, pattern=SIZE, max_length=16)
    """Memory, as in 64Gi; null leaves it to the cluster's defaults."""
    gpu: int | None = Field(default=None, ge=0, le=64)
    """GPUs; null: one for each process in the pod of a stage that runs a model, none for the others."""


class StoreSpec(Recipe):
    """Where every output of the run lies. A tenant is a store prefix: nothing is shared across prefixes."""

    uri: str = Field(min_length=1, max_length=1024)
    """s3://bucket/prefix; on one machine also file:///path, or a path relative to the working directory."""
    endpoint: str | None = Field(default=None, max_length=1024, pattern=r"^https?://[^@?#\s]+$")
    """Address of an S3 server that is not Amazon's, as in https://minio.example:9000."""
    region: str | None = Field(default=None, max_length=64)
    """Region of the bucket."""
    credentials_secret: Annotated[ObjectName | None, Placement] = None
    """Secret in the run's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; null: the pod's own identity."""
    ca_secret: Annotated[ObjectName | None, Placement] = None
    """Secret in the run's namespace with ca.crt, the authority that signed the endpoint's certificate."""
    ca_file: str | None = Field(default=None, min_length=1, max_length=1024)
    """File with that authority, for runs without a cluster."""

    @model_validator(mode="after")
    def _uri_is_understood(self) -> Self:
        scheme, found, rest = self.uri.partition("://")
        if not found and self.uri.startswith(("s3:", "file:", "gs:", "http:", "https:")):
            raise ValueError(f"uri: {self.uri!r} has no //, as in s3://bucket/prefix or file:///path")
        if found and (scheme not in ("s3", "file") or not rest.strip("/")):
            raise ValueError(f"uri: {self.uri!r} is neither s3://bucket/prefix nor file:///path nor a path")
        if scheme == "file" and found and not rest.startswith("/"):
            raise ValueError(f"uri: {self.uri!r} names a host; a file URI has three slashes, as in file:///data/egt")
        return self


class Toleration(Recipe):
    """A taint that pods of the run put up with; the fields are those of Kubernetes."""

    key: LabelKey | None = None
    """Key of the taint; null with operator Exists matches every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal compares the value, Exists does not."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; null matches all."""
    toleration_seconds: int | None = Field(default=None, ge=0)
    """How long NoExecute is put up with; null: for ever."""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("key: is missing; only operator Exists does without one, and matches every taint")
        if self.value is not None and self.operator == "Exists":
            raise ValueError(f"value: {self.value!r} is not accepted; operator Exists takes none")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError(f"tolerationSeconds: {self.toleration_seconds} is not accepted; it needs effect NoExecute")
        return self


class NodeRequirement(Recipe):
    """What a label of a node must be; the fields are those of Kubernetes' node affinity."""

    key: LabelKey
    """Key of the label, as in nvidia.com/gpu.product."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = "In"
    """In and NotIn compare with values, the others look at the key alone."""
    values: tuple[LabelValue, ...] = Field(default=(), max_length=32)
    """Values to compare with."""

    @model_validator(mode="after")
    def _values_fit_the_operator(self) -> Self:
        if bool(self.values) != (self.operator in ("In", "NotIn")):
            wanted = "at least one value" if self.operator in ("In", "NotIn") else "no values"
            raise ValueError(f"values: {list(self.values)} is not accepted; operator {self.operator} takes {wanted}")
        return self


class Scheduling(Recipe):
    """Queue, priority and nodes of the run's pods."""

    queue: str | None = Field(default=None, pattern=DNS_LABEL, max_length=63)
    """Kueue's LocalQueue that admits each stage; null: no queue."""
    priority_class: ObjectName | None = None
    """PriorityClass of the pods."""
    node_selector: dict[LabelKey, LabelValue] = Field(default={}, max_length=32)
    """Labels that a node must have: the node pool."""
    node_affinity: tuple[NodeRequirement, ...] = Field(default=(), max_length=32)
    """What else a node must be; every requirement holds. As one of several kinds of GPU."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32)
    """Taints that the pods put up with."""
    gpu_memory: str | None = Field(default=None, pattern=SIZE, max_length=16)
    """What one GPU holds, as in 80Gi; `egt plan` refuses what needs more. null: as nvidia.com/gpu.product says."""


class PodTemplate(Recipe):
    """What is laid over every pod of the run; nothing else of a pod can be changed."""

    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=32)
    """Labels of the pods, as cost reports need them."""
    annotations: dict[LabelKey, Annotated[str, Field(max_length=4096)]] = Field(default={}, max_length=32)
    """Annotations of the pods."""


class Retry(Recipe):
    """How often a stage starts again after a failure of each class. A user error is never tried again."""

    preempted: Attempts = 100
    """The pod gave way to a more important one or to maintenance: no fault of the run."""
    node_lost: Attempts = 10
    """The node went away or stopped answering."""
    unavailable: Attempts = 10
    """A service outside did not answer (exit code 69)."""
    crash: Attempts = 3
    """Any other exit code."""
    hang: Attempts = 2
    """No progress for too long."""
    bad_input: Attempts = 2
    """An input artifact was missing or damaged (exit code 65); its stage runs again first."""
    out_of_memory: Attempts = 1
    """Killed for memory; a second time would end alike unless another pod had taken it."""


class TimeToLive(Recipe):
    """When a finished run is removed from the cluster, by outcome. Artifacts in the store stay."""

    complete_seconds: int | None = Field(default=None, ge=0)
    """Seconds after a run is complete; null: never."""
    failed_seconds: int | None = Field(default=None, ge=0)
    """Seconds after a run has failed; null: never."""

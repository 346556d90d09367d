"""What the chart tells the operator, as variables ``EGT_<FIELD>``; nothing of it changes what is computed."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from egt_operator.api_parts import SIZE
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.words import in_words

_PREFIX = "EGT_"

Size = Annotated[str, Field(pattern=SIZE)]


class Settings(BaseModel):
    """How the operator works; each field is a value of the chart."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image: str = Field(min_length=1)
    """Image of the pipeline, by digest in production: what every stage runs in."""
    image_pull_policy: str = "IfNotPresent"
    """When nodes pull it."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets of the run's namespace that hold registry credentials."""
    service_account: str = "default"
    """ServiceAccount of the pods of runs; it needs no permission, and its token is not mounted."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose runs are reconciled; empty: all."""
    workers: int = Field(default=8, ge=1)
    """Runs that are reconciled side by side."""
    requests_per_second: float = Field(default=200, gt=0)
    """Requests to the API server, on average."""
    burst: int = Field(default=400, ge=1)
    """Requests that may come at once."""
    resync_seconds: float = Field(default=300, gt=0)
    """Every run is looked at this often, whatever the watches say."""
    progress_seconds: float = Field(default=30, gt=0)
    """How often the progress of a running stage is read from its log."""
    grace_seconds: int = Field(default=120, ge=1)
    """Between SIGTERM and SIGKILL of a stage: time for a checkpoint."""
    lost_node_seconds: float = Field(default=120, ge=0)
    """A node that does not answer for this long is lost; as long again its pods may still write."""
    pending_seconds: float = Field(default=120, ge=0)
    """An image or secret that cannot be had fails a stage after this long."""
    check_node_pools: bool = True
    """Whether a run whose nodeSelector fits no node is held back and says so; false where nodes are made on demand."""
    backoff_seconds: float = Field(default=10, gt=0)
    """Pause before the second attempt; it doubles from attempt to attempt."""
    backoff_limit_seconds: float = Field(default=600, gt=0)
    """Longest pause between two attempts."""
    scratch_size: Size = "100Gi"
    """Size of the scratch volume of a pod, as in 100Gi."""
    shared_memory_size: Size = "8Gi"
    """Size of /dev/shm, as in 8Gi: what ranks of one node exchange data through."""
    cache_claim: str = ""
    """PersistentVolumeClaim of the run's namespace that keeps weights and caches; empty: every pod begins anew."""
    pod_security_user: int = Field(default=65532, ge=1)
    """User and group of the pods of runs."""
    metrics_port: int = Field(default=8080, ge=0, le=65535)
    """Where /metrics and /healthz listen; 0: any free port."""
    lease_name: str = "egt-operator"
    """Lease that the replicas compete for."""
    lease_namespace: str = "default"
    """Namespace of the lease: the operator's own."""
    identity: str = Field(default_factory=lambda: os.environ.get("HOSTNAME", "egt-operator"))
    """Name of this replica in the lease: its pod."""

    @field_validator("image_pull_secrets", "namespaces", mode="before")
    @classmethod
    def _is_a_list(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            found = json.loads(given)
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise ValueError(f'{given!r} is not accepted; it is a list in JSON, as in ["team-a", "team-b"]')
        return found

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings in ``environment``; lists are JSON. Raises TaskError naming each variable that is wrong."""
        names = {name: _PREFIX + name.upper() for name in cls.model_fields}
        given = {name: environment[variable] for name, variable in names.items() if variable in environment}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            wrong = [{**found, "loc": (names[str(found["loc"][0])],)} for found in error.errors()]
            raise TaskError("\n".join(in_words(found) for found in wrong)) from None  # type: ignore[arg-type]

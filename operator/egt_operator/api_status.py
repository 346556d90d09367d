"""What the operator says of a run. Fields of a newer operator are ignored, not refused, when a status is read."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from egt_operator.plan import Phase
from egt_pipeline.contract.graph import StageName

MESSAGE_CHARACTERS = 4000  # of what is said of a failure; a pod's last words are about as long
Text = Annotated[str, Field(max_length=32768)]  # what Kubernetes allows a condition's message
FailureClass = Literal[
    "UserError", "OutOfMemory", "NodeLost", "Preempted", "Hang", "BadInput", "Unavailable", "Crash", "Deadline"
]
TERMINAL = ("Complete", "Failed")
"""Phases that a run never leaves."""
Stopping = Literal["Suspend", "Hang", "Deadline", "RankReplaced", "Deleted"]


class StatusPart(BaseModel):
    """Base of the status: frozen, camelCase outside."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Condition(StatusPart):
    """One aspect of a run, in the form of Kubernetes' metav1.Condition."""

    type: Literal["Accepted", "Running", "Suspended", "Complete", "Failed", "Finished"]
    """What is said; Finished is Complete or Failed, and none of the three flips once it is True."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str = Field(pattern=r"^[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?$", max_length=128)
    """Why, as one word for programs."""
    message: Text
    """Why, for people. Of a run's conditions one at most repeats the verdict; Running says what a run waits for."""
    last_transition_time: datetime
    """When status changed last."""
    observed_generation: int | None = Field(default=None, ge=0)
    """Generation of the spec that this was said of."""


class StageProgress(StatusPart):
    """How far a stage is."""

    done: float
    """Units that are done."""
    total: float
    """Units in all."""
    unit: str = Field(max_length=64)
    """What is counted: rows, steps."""


class GpuHours(StatusPart):
    """GPU-hours of a stage over all its attempts."""

    used: float = Field(default=0, ge=0)
    """All that were spent."""
    wasted: float = Field(default=0, ge=0)
    """Those of them spent on attempts that failed."""
    saved: float = Field(default=0, ge=0)
    """Those that an earlier run had spent on an output that was reused."""


class Failure(StatusPart):
    """Why an attempt failed."""

    kind: FailureClass = Field(alias="class")
    """Class of the failure; it decides how often the stage is tried again."""
    attempt: int = Field(ge=1)
    """The attempt that failed."""
    exit_code: int | None = None
    """What the process ended with, if it ended by itself."""
    message: Text = ""
    """The stage's own last words."""
    time: datetime
    """When it failed."""


class StageStatus(StatusPart):
    """One stage of the run as it was seen."""

    name: StageName
    """The stage."""
    phase: Phase
    """How far it is."""
    attempt: int = Field(default=0, ge=0)
    """Number of the last attempt; 0 before the first and when its output was published already."""
    digest: str | None = Field(default=None, max_length=64)
    """Name of its output in the store; null until prepare has read the data."""
    job: str | None = Field(default=None, max_length=63)
    """Job of the last attempt."""
    job_uid: str | None = Field(default=None, max_length=64)
    """UID of that job; null until it has been seen."""
    stopping: Stopping | None = None
    """Why the last attempt is being ended; null while it may go on."""
    reason: str | None = Field(default=None, max_length=128)
    """What the stage waits for, as one word."""
    message: Text | None = None
    """What the stage waits for, for people."""
    started: datetime | None = None
    """When the first attempt started."""
    queued_since: datetime | None = None
    """Since when the last attempt waits for its pods to run; null when they do."""
    running_since: datetime | None = None
    """Since when the pods of the last attempt run; null when they do not."""
    pods_created: datetime | None = None
    """When the youngest of those pods was created; a younger one has replaced another."""
    progressed: datetime | None = None
    """When the last attempt was last seen to move."""
    retries: dict[str, int] = Field(default={}, max_length=16)
    """Attempts that failed, by class."""
    next_attempt: datetime | None = None
    """Not before this the stage is tried again."""
    finished: datetime | None = None
    """When the output was published, or the stage was given up."""
    queue_seconds: float | None = Field(default=None, ge=0)
    """Time spent in the queue, over all attempts."""
    progress: StageProgress | None = None
    """How far the last attempt is."""
    metrics: dict[str, float] = Field(default={}, max_length=256)
    """Figures of its manifest."""
    content: dict[str, str] = Field(default={}, max_length=16)
    """Content digests of what prepare wrote."""
    gpu_hours: GpuHours | None = None
    """What it cost."""
    last_failure: Failure | None = None
    """Why the last attempt that failed did so."""


class EGTRunStatus(StatusPart):
    """What the operator saw of a run."""

    observed_generation: int | None = Field(default=None, ge=0)
    """Generation of the spec that this status speaks of."""
    phase: Literal["Pending", "Running", "Suspended", "Complete", "Failed"] = "Pending"
    """The conditions in one word."""
    stage: StageName | None = None
    """The stage that is at work or was last."""
    progress: str | None = Field(default=None, max_length=64)
    """How far the run is, for people: 3/7 (probe 40 %)."""
    accuracy: str | None = Field(default=None, max_length=16)
    """Accuracy of the final model on the first source of data.evaluate, with three decimals."""
    active_seconds: float = Field(default=0, ge=0)
    """How long pods of the run have run, without the attempt that runs now."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16)
    """Accepted, Running, Suspended, Complete, Failed, Finished."""
    stages: tuple[StageStatus, ...] = Field(default=(), max_length=16)
    """Every stage, in the order of the graph."""

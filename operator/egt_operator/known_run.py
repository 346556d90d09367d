"""A run as the operator remembers it: as text, for thousands of them, and read anew at each look."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from egt_operator.api import GROUP, KIND, VERSION, EGTRun, EGTRunSpec
from egt_operator.api_status import EGTRunStatus
from egt_operator.render import Owner

_SPECS = 256  # of runs looked at last; a spec in memory is 30 kB, its text 4 kB


class KnownRun:
    """One version of a run. What the API server adds for others is left out."""

    __slots__ = ("_spec", "_status", "being_deleted", "generation", "owner", "phase", "version")

    def __init__(self, body: Mapping[str, Any]) -> None:
        metadata, status = body["metadata"], body.get("status") or {}
        self.owner = Owner(metadata["name"], metadata["namespace"], metadata["uid"])
        self.version: str = metadata["resourceVersion"]
        self.generation: int = metadata.get("generation", 1)
        self.being_deleted = "deletionTimestamp" in metadata
        self.phase: str | None = status.get("phase")
        self._spec, self._status = json.dumps(body["spec"]), json.dumps(status) if status else None

    def read(self) -> EGTRun:
        """The run. Raises ValidationError when this operator cannot read it."""
        metadata = {"name": self.owner.name, "namespace": self.owner.namespace}
        run = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata}
        try:
            return EGTRun.model_validate({**run, "spec": _spec(self._spec), "status": self.status()})
        except ValidationError:  # once more, so that the error names the place in the whole
            status = json.loads(self._status) if self._status else None
            return EGTRun.model_validate({**run, "spec": json.loads(self._spec), "status": status})

    def status(self) -> EGTRunStatus | None:
        """What was said of it last. Raises ValidationError when that is of a newer operator."""
        return EGTRunStatus.model_validate_json(self._status) if self._status else None


@lru_cache(_SPECS)
def _spec(text: str) -> EGTRunSpec:
    return EGTRunSpec.model_validate_json(text)

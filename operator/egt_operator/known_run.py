"""A run as the operator remembers it: small, and read as an EGTRun once for all looks at it."""

from collections.abc import Mapping
from typing import Any

from egt_operator.api import EGTRun
from egt_operator.api_status import EGTRunStatus
from egt_operator.render import Owner


class KnownRun:
    """One version of a run. What the API server adds for others is left out."""

    __slots__ = ("_before", "_run", "being_deleted", "body", "generation", "owner", "version")

    def __init__(self, body: Mapping[str, Any], before: "KnownRun | None" = None) -> None:
        metadata = body["metadata"]
        self.owner = Owner(metadata["name"], metadata["namespace"], metadata["uid"])
        self.version: str = metadata["resourceVersion"]
        self.generation: int = metadata.get("generation", 1)
        self.being_deleted = "deletionTimestamp" in metadata
        named = {name: metadata[name] for name in ("name", "namespace")}
        self.body = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": named, "spec": body["spec"]}
        if body.get("status"):
            self.body["status"] = body["status"]
        self._run: EGTRun | None = None
        # Only its status is new: what was read of the spec is still right.
        same = before is not None and (before.owner, before.generation) == (self.owner, self.generation)
        self._before = before._run if same and before is not None else None

    def read(self) -> EGTRun:
        """The run. Raises ValidationError when this operator cannot read it."""
        if self._run is None:
            if self._before is not None:
                found = self.body.get("status")
                status = EGTRunStatus.model_validate(found) if found else None
                self._run, self._before = self._before.model_copy(update={"status": status}), None
            else:
                self._run = EGTRun.model_validate(self.body)
        return self._run

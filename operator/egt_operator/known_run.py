"""A run as the operator remembers it: small, and read as an EGTRun once for all looks at it."""

from collections.abc import Mapping
from typing import Any

from egt_operator.api import EGTRun
from egt_operator.render import Owner


class KnownRun:
    """One version of a run. What the API server adds for others is left out."""

    __slots__ = ("_run", "being_deleted", "body", "generation", "owner", "version")

    def __init__(self, body: Mapping[str, Any]) -> None:
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

    def read(self) -> EGTRun:
        """The run. Raises ValidationError when this operator cannot read it."""
        if self._run is None:
            self._run = EGTRun.model_validate(self.body)
        return self._run

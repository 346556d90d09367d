"""An API server in memory, as the operator calls it, over the machinery that a real one has behind it.

It serves fast tests of histories. tests/cluster proves on a real API server that what it answers is what one answers.
"""

import copy
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from egt_operator.cache import Kind
from egt_operator.children import JOB_LABEL, NUDGED
from egt_operator.cluster import Unmade
from egt_operator.cluster_errors import Conflict, Refused
from fake_machinery import Body, FakeMachinery


@dataclass
class FakeCluster(FakeMachinery):
    """What ``egt_operator.cluster.Cluster`` offers. ``calls`` counts; ``before`` and ``after`` may raise Crash."""

    calls: list[str] = field(default_factory=list)
    before: Callable[[int], None] = lambda _number: None
    after: Callable[[int], None] = lambda _number: None
    logs: dict[str, str] = field(default_factory=dict)
    events: dict[str, Body] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    queues: set[str] = field(default_factory=lambda: {"gpus"})

    def _count(self, call: str) -> None:
        self.before(len(self.calls))
        self.calls.append(call)

    def _done(self) -> None:
        self.after(len(self.calls) - 1)

    async def pages(self, kind: Kind, _namespaces: Sequence[str]) -> AsyncIterator[tuple[list[Body], int]]:
        yield copy.deepcopy(self.objects(kind)), self._version

    async def run(self, _namespace: str, name: str) -> Body | None:
        return copy.deepcopy(self._objects["run"].get(name))

    async def job(self, _namespace: str, name: str) -> Body | None:
        return copy.deepcopy(self._objects["job"].get(name))

    async def pods(self, _namespace: str, job: str) -> list[Body]:
        mine = [p for p in self.objects("pod") if p["metadata"]["labels"][JOB_LABEL] == job]
        return copy.deepcopy(mine)

    async def write_status(self, _namespace: str, name: str, version: str, status: Body) -> Body:
        self._count("write_status")
        found = self._objects["run"].get(name)
        if found is None or found["metadata"]["resourceVersion"] != version:
            raise Conflict("changed meanwhile")
        merged = {**found.get("status", {}), **json.loads(json.dumps(status))}
        kept = {name: value for name, value in merged.items() if value is not None}
        stored = self._store("run", {**copy.deepcopy(found), "status": kept})
        self._done()
        return stored

    async def create_job(self, job: Body) -> Body:
        self._count("create_job")
        name = job["metadata"]["name"]
        if name in self._objects["job"]:
            raise Conflict(f"{name} exists")
        if job["kind"] != "PyTorchJob":
            raise Refused(422, "not a PyTorchJob")
        self.created.append(name)
        made = copy.deepcopy(job)
        made["metadata"]["creationTimestamp"] = self._time()
        stored = self._store("job", made)
        self._done()
        return stored

    async def delete_job(self, _namespace: str, name: str, uid: str) -> None:
        self._count("delete_job")
        found = self._objects["job"].get(name)
        if found is not None and found["metadata"]["uid"] == uid:
            self.delete("job", name)
        self._done()

    async def nudge_job(self, _namespace: str, name: str, uid: str, now: datetime) -> None:
        self._count("nudge_job")
        found = self._objects["job"].get(name)
        if found is not None and found["metadata"]["uid"] == uid:
            self._given_up.discard(name)
            found["metadata"].setdefault("annotations", {})[NUDGED] = now.isoformat(timespec="seconds")
            self._store("job", found)
        self._done()

    async def unmade_pods(self, _namespace: str) -> dict[str, Unmade]:
        return dict(self._said)

    async def remove_run(self, _namespace: str, name: str, _uid: str) -> None:
        self._count("remove_run")
        self.delete("run", name)
        self._done()

    async def create_event(self, event: Body) -> None:
        self._count("create_event")
        self.events.setdefault(event["metadata"]["name"], event)
        self._done()

    async def log_end(self, _namespace: str, pod: str) -> str:
        return self.logs.get(pod, "")

    async def has_queue(self, _namespace: str, name: str) -> bool:
        return name in self.queues

    async def has_nodes(self, labels: Mapping[str, str]) -> bool:
        return labels == {"pool": "h200"}

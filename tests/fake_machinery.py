"""Objects in memory, with a training-operator and nodes that do what a script says; the clock is turned by hand."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from egt_operator.cache import Kind
from egt_operator.children import JOB_LABEL
from egt_operator.cluster import Unmade
from egt_operator.render import RUN_LABEL, STAGE_LABEL
from fake_stages import Ending, Script, end

Body = dict[str, Any]


@dataclass
class FakeMachinery:
    """What stands behind an API server; ``heard`` is told of every change."""

    script: Script = lambda _stage, _attempt: Ending()
    now: datetime = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    heard: Callable[[Kind, Body, bool], None] = lambda _kind, _body, _gone: None
    published: dict[str, str] = field(default_factory=dict)
    unmade: str = ""
    """Why no pod can be made; empty: they can."""

    def __post_init__(self) -> None:
        self._version = 0
        self._given_up: set[str] = set()
        self._said: dict[str, Unmade] = {}
        self._objects: dict[Kind, dict[str, Body]] = {"run": {}, "job": {}, "pod": {}}

    def clock(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()

    def apply(self, run: Body) -> None:
        self._store("run", {**copy.deepcopy(run), "metadata": {**run["metadata"], "generation": 1}})

    def change(self, **spec: Any) -> None:
        run = copy.deepcopy(next(iter(self._objects["run"].values())))
        run["spec"] |= spec
        run["metadata"]["generation"] += 1
        self._store("run", run)

    def objects(self, kind: Kind) -> list[Body]:
        return list(self._objects[kind].values())

    def delete(self, kind: Kind, name: str) -> None:
        body = self._objects[kind].pop(name, None)
        if body is None:
            return
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.heard(kind, copy.deepcopy(body), True)
        owned: dict[Kind, tuple[Kind, ...]] = {"run": ("job", "pod"), "job": ("pod",), "pod": ()}
        for lower in owned[kind]:
            for other in list(self._objects[lower].values()):
                label = RUN_LABEL if kind == "run" else JOB_LABEL
                if other["metadata"]["labels"].get(label) != name:
                    continue
                if lower == "pod" and other["status"]["phase"] == "Running":
                    self.terminate(other["metadata"]["name"])
                else:
                    self.delete(lower, other["metadata"]["name"])

    def terminate(self, pod: str) -> None:
        """Somebody deletes a pod, which gets the time to end by itself."""
        body = self._objects["pod"][pod]
        body["metadata"].setdefault("deletionTimestamp", self._time())
        self._store("pod", body)

    def advance(self, seconds: float) -> None:
        """Time passes: jobs get their pods, pods run and end, jobs hear of it."""
        self.now += timedelta(seconds=seconds)
        for job in self.objects("job"):
            self._make_pods(job)
        for pod in self.objects("pod"):
            self._live(pod)
        for job in self.objects("job"):
            self._conclude(job)

    def _make_pods(self, job: Body) -> None:
        name = job["metadata"]["name"]
        if job["spec"]["runPolicy"].get("suspend") or job.get("status", {}).get("conditions") or name in self._given_up:
            return
        if self.unmade:  # training-operator waits longer after each failure, unless the job changes
            self._given_up.add(name)
            self._said[job["metadata"]["uid"]] = Unmade(self.now, self.unmade)
            return
        owner = {"kind": "PyTorchJob", "name": name, "uid": job["metadata"]["uid"], "controller": True}
        for kind, replica in job["spec"]["pytorchReplicaSpecs"].items():
            for number in range(replica["replicas"]):
                pod = f"{name}-{kind.lower()}-{number}"
                if pod not in self._objects["pod"]:
                    template = copy.deepcopy(replica["template"])
                    labels = {**template["metadata"]["labels"], JOB_LABEL: name}
                    metadata = {**template["metadata"], "labels": labels, "name": pod, "namespace": "team"}
                    metadata |= {"creationTimestamp": self._time(), "ownerReferences": [owner]}
                    self._store("pod", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})

    def _live(self, pod: Body) -> None:
        status, labels = pod["status"], pod["metadata"]["labels"]
        if "deletionTimestamp" in pod["metadata"]:
            self._leave(pod)
            return
        attempt = int(labels["egt.dev/attempt"])
        ending = self.script(labels[STAGE_LABEL], attempt)
        if status["phase"] == "Pending":
            box = {"name": "pytorch", "state": {"running": {"startedAt": self._time()}}}
            status |= {"phase": "Running", "startTime": self._time(), "containerStatuses": [box]}
            self._store("pod", pod)
        elif status["phase"] == "Running":
            ran = self.now - datetime.fromisoformat(status["startTime"].replace("Z", "+00:00"))
            if ran.total_seconds() >= ending.seconds:
                end(pod, ending, self._time(), self.published)
                self._store("pod", pod)

    def _leave(self, pod: Body) -> None:
        """A pod that is to go ends first, and a node says how, before it is gone."""
        if pod["status"]["phase"] == "Running":
            end(pod, Ending(exit_code=143), self._time(), self.published)
            self._store("pod", pod)
        else:
            self.delete("pod", pod["metadata"]["name"])

    def _conclude(self, job: Body) -> None:
        """As training-operator 1.9.4 with cleanPodPolicy Running: a failed pod, or the end of the master, decides.

        A running pod that is to go counts as failed.
        """
        if job.get("status", {}).get("conditions"):
            return
        name = job["metadata"]["name"]
        uid = job["metadata"]["uid"]
        pods = [p for p in self.objects("pod") if p["metadata"]["ownerReferences"][0]["uid"] == uid]
        phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in pods}
        going = [p for p in pods if p["status"]["phase"] == "Running" and "deletionTimestamp" in p["metadata"]]
        failed = len(going) + list(phases.values()).count("Failed")
        outcome, said = "Failed" if failed else "", f"is failed because {failed} replica(s) failed."
        if phases.get(f"{name}-master-0") == "Succeeded":
            outcome, said = "Succeeded", "is successfully completed."
        if outcome:
            job["status"] = {
                "conditions": [{"type": outcome, "status": "True", "message": f"PyTorchJob {name} {said}"}]
            }
            self._store("job", job)
            for pod in pods:
                if pod["status"]["phase"] in ("Pending", "Running"):
                    self.terminate(pod["metadata"]["name"])

    def _time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _store(self, kind: Kind, body: Body) -> Body:
        self._version += 1
        metadata = body["metadata"]
        metadata.setdefault("uid", f"uid-{self._version}")
        metadata["resourceVersion"] = str(self._version)
        self._objects[kind][metadata["name"]] = body
        self.heard(kind, copy.deepcopy(body), False)
        return copy.deepcopy(body)

"""What the operator knows of runs, jobs and pods; a late event never replaces something newer."""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from egt_operator.children import Job, Pod, parse_job, parse_pod
from egt_operator.known_run import KnownRun
from egt_operator.render import RUN_LABEL

Body = Mapping[str, Any]
Kind = Literal["run", "job", "pod"]
KINDS: tuple[Kind, ...] = ("job", "pod", "run")  # a run is looked at when the rest of it is known


@dataclass(frozen=True, slots=True)
class _Known:
    version: int
    value: Any


def run_key(kind: Kind, body: Body) -> str | None:
    """The run that an object is or belongs to, as namespace/name; None if it is none of ours."""
    metadata = body["metadata"]
    name = metadata["name"] if kind == "run" else (metadata.get("labels") or {}).get(RUN_LABEL)
    return f"{metadata['namespace']}/{name}" if name else None


class Cache:
    """Runs, jobs and pods, each as far as it matters, by the key of their run."""

    def __init__(self) -> None:
        self._known: dict[Kind, dict[str, dict[str, _Known]]] = {kind: defaultdict(dict) for kind in KINDS}
        # Of what went since the list before last, so that a list or a late event does not bring it back.
        self._gone: dict[Kind, tuple[set[str], set[str]]] = {kind: (set(), set()) for kind in KINDS}

    def every_run(self) -> list[str]:
        """The keys of all runs."""
        return list(self._known["run"])

    def run(self, key: str) -> KnownRun | None:
        """The run; of several of that name the newest."""
        found = self._known["run"].get(key)
        newest: KnownRun | None = max(found.values(), key=lambda known: known.version).value if found else None
        return newest

    def jobs(self, key: str) -> Mapping[str, Job]:
        """The jobs of a run by name."""
        return {known.value.name: known.value for known in self._known["job"].get(key, {}).values()}

    def pods(self, key: str) -> list[Pod]:
        """The pods of a run."""
        return [known.value for known in self._known["pod"].get(key, {}).values()]

    def pods_of(self, key: str, job: Job) -> list[Pod]:
        """The pods of one job of a run."""
        return [pod for pod in self.pods(key) if pod.owner_uid == job.uid]

    def keep_pods_of(self, key: str, job: Job, listed: Sequence[Body]) -> None:
        """Remember what was listed of a job that makes no more pods, and that all its others are gone."""
        for body in listed:
            self.keep("pod", body)
        there = {body["metadata"]["uid"] for body in listed}
        known = self._known["pod"].get(key, {})
        for uid in [uid for uid, pod in known.items() if pod.value.owner_uid == job.uid and uid not in there]:
            self._forget("pod", key, uid)

    def keep(self, kind: Kind, body: Body, *, gone: bool = False) -> str | None:
        """Remember an object, or that it is gone; the key of its run if that is news.

        What changed in a job or pod is none if nothing decides by it: of ten versions of a pod about three are.
        """
        key = run_key(kind, body)
        if key is None:
            return None
        uid, version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        if gone:
            self._forget(kind, key, uid)
            return key
        if any(uid in some for some in self._gone[kind]):
            return None
        known = self._known[kind][key]
        if uid in known and version <= known[uid].version:
            return None
        before = known[uid].value if uid in known else None
        value = _PARSE[kind](body)
        known[uid] = _Known(version, value)
        return None if before == value else key

    def _forget(self, kind: Kind, key: str, uid: str) -> None:
        """An object is gone for good: no list or late event brings it back."""
        self._gone[kind][0].add(uid)
        self._known[kind].get(key, {}).pop(uid, None)
        if not self._known[kind].get(key):
            self._known[kind].pop(key, None)

    def drop_unlisted(self, kind: Kind, listed: Container[str], version: int) -> list[str]:
        """Forget what a list made at ``version`` does not hold, by uid; the keys of the runs that it was of."""
        missed = []
        for key, known in list(self._known[kind].items()):
            for uid in [uid for uid, old in known.items() if uid not in listed and old.version <= version]:
                del known[uid]
                missed.append(key)
            if not known:
                del self._known[kind][key]
        self._gone[kind] = set(), self._gone[kind][0]
        return missed

    def forget_run(self, key: str) -> None:
        """The run is gone; its jobs and pods go by their own events."""
        self._known["run"].pop(key, None)


_PARSE: Mapping[Kind, Callable[[Body], Any]] = {"run": KnownRun, "job": parse_job, "pod": parse_pod}

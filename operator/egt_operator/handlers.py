"""kopf: watches, and nothing else. Level-triggered events only, so kopf writes nothing on anybody's objects."""

import os
import time
from dataclasses import replace
from typing import Any

import kopf

from egt_operator.api import GROUP, VERSION
from egt_operator.cache import Kind
from egt_operator.controller import Controller
from egt_operator.render import RUN_LABEL

RUNS, JOBS, PODS = (GROUP, VERSION, "egtruns"), ("kubeflow.org", "v1", "pytorchjobs"), ("", "v1", "pods")
WATCHED = (RUNS, JOBS, PODS)


class Handlers:
    """The watches of one operator; ``age_seconds`` is how long ago anything was heard."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self._heard = controller, time.monotonic()
        self.registry = kopf.OperatorRegistry()
        kopf.on.login(registry=self.registry)(_login)
        kopf.on.event(*RUNS, registry=self.registry)(self._run)
        kopf.on.event(*JOBS, labels={RUN_LABEL: kopf.PRESENT}, registry=self.registry)(self._job)
        kopf.on.event(*PODS, labels={RUN_LABEL: kopf.PRESENT}, registry=self.registry)(self._pod)

    def age_seconds(self) -> float:
        """Since the last event of any watch."""
        return time.monotonic() - self._heard

    async def _run(self, body: kopf.Body, type: str | None, **_: Any) -> None:
        self._tell("run", body, type)

    async def _job(self, body: kopf.Body, type: str | None, **_: Any) -> None:
        self._tell("job", body, type)

    async def _pod(self, body: kopf.Body, type: str | None, **_: Any) -> None:
        self._tell("pod", body, type)

    def _tell(self, kind: Kind, body: kopf.Body, event: str | None) -> None:
        self._heard = time.monotonic()
        self._controller.heard(kind, dict(body), gone=event == "DELETED")


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """The identity of the pod, else that of the user's kubeconfig."""
    found = kopf.login_with_service_account(**arguments)
    if found is None:
        return kopf.login_with_kubeconfig(**arguments)
    # kopf would ask a DNS server for kubernetes.default.svc; every other client takes the address that the pod is told.
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return replace(found, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf copies and compares every object at each event, for handlers of changes, of which there are none here."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object is worth comparing."""
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> None:
        """There is nothing to compare with."""

    def store(self, **_: Any) -> None:
        """Nothing is written on anybody's object."""


def kopf_settings() -> kopf.OperatorSettings:
    """kopf told to watch and to leave no trace."""
    found = kopf.OperatorSettings()
    found.peering.standalone = True  # replicas compete for a Lease
    found.posting.enabled = False  # events of ours are said once, see events.py
    found.persistence.diffbase_storage = _NoDiffs()
    found.scanning.disabled = True  # what is watched is known; scanning needs rights on the whole cluster
    # So long each object that was heard of stays in memory whole; by default for five seconds.
    found.queueing.idle_timeout = 0.5
    found.networking.request_timeout = 60
    found.watching.server_timeout, found.watching.client_timeout = 300, 310
    for resource in (JOBS, PODS):
        found.watching.label_selectors[resource] = RUN_LABEL  # on the server: other people's pods never come here
    return found

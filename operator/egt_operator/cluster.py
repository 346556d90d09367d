"""The only calls to the API server, and the permissions they need; objects are plain dicts, as the API gives them.

Watching is kopf's (see handlers); what is read here is read because a decision needs it fresh or seldom.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.exceptions import ApiException

from egt_operator.api import GROUP, VERSION
from egt_operator.cache import Kind
from egt_operator.children import JOB_LABEL, NUDGED, parse_time
from egt_operator.cluster_errors import Conflict, NotServed, Refused, meaning
from egt_operator.rate import Bucket
from egt_operator.render import RUN_LABEL

Body = dict[str, Any]
RUNS = f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/egtruns/{{name}}"
JOBS = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
PODS = "/api/v1/namespaces/{namespace}/pods"
EVENTS = "/api/v1/namespaces/{namespace}/events"
NODES = "/api/v1/nodes"
QUEUES = "/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/localqueues"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
LISTS: Mapping[Kind, str] = {
    "run": f"/apis/{GROUP}/{VERSION}{{scope}}/egtruns",
    "job": "/apis/kubeflow.org/v1{scope}/pytorchjobs",
    "pod": "/api/v1{scope}/pods",
}
_MISSING = {
    "pytorchjobs": "install training-operator 1.9 or newer",
    "egtruns": "apply the definition that comes with the chart (crds.install)",
}
PAGE = 100  # objects of one answer; one takes up to 100 kB of memory while it is read
REQUEST_SECONDS = 30.0  # a request that takes longer has most likely lost its connection
LOG_SECONDS = 10.0  # a node that takes longer does not answer
LOG_BYTES = 64 * 2**10  # of a log's end: progress is said every ten seconds


class Unmade(NamedTuple):
    """What was said last of pods that could not be made."""

    time: datetime
    message: str


class Cluster:
    """The API server. Raises Conflict, Refused, or ApiException and OSError where another try may help."""

    def __init__(self, client: ApiClient, bucket: Bucket) -> None:
        self._client, self._bucket = client, bucket

    async def pages(self, kind: Kind, namespaces: Sequence[str]) -> AsyncIterator[tuple[list[Body], int]]:
        """Every object of a kind that could be ours, page by page, and the version of the cluster that a page is of."""
        for scope in [f"/namespaces/{name}" for name in namespaces] or [""]:
            query = {"limit": PAGE, **({} if kind == "run" else {"labelSelector": RUN_LABEL})}
            while True:
                page = json.loads(await self._page(LISTS[kind].format(scope=scope), query))
                # A list leaves out what is the same of all its objects.
                same = {"apiVersion": page["apiVersion"], "kind": page["kind"][:-4]}
                yield [{**same, **one} for one in page["items"]], int(page["metadata"]["resourceVersion"])
                if not page["metadata"].get("continue"):
                    break
                query = {**query, "continue": page["metadata"]["continue"]}

    async def _page(self, path: str, query: Mapping[str, Any]) -> str:
        try:
            return await self._text("GET", path, query=query)
        except ApiException as error:
            if error.status != 404:
                raise
            group, resource = path.split("/")[2], path.rpartition("/")[2]
            raise NotServed(f"this cluster does not know {resource}.{group}: {_MISSING[resource]}") from None

    async def run(self, namespace: str, name: str) -> Body | None:
        """An EGTRun, None if there is none."""
        return await self._get(RUNS.format(namespace=namespace, name=name))

    async def write_status(self, namespace: str, name: str, version: str, status: Body) -> Body:
        """The run with ``status``. Raises Conflict if it is no longer the one of that ``version``."""
        body = {"metadata": {"resourceVersion": version}, "status": status}
        path = RUNS.format(namespace=namespace, name=name) + "/status"
        return await self._call("PATCH", path, body, content="application/merge-patch+json")

    async def remove_run(self, namespace: str, name: str, uid: str) -> None:
        """Delete a run; its jobs follow it."""
        await self._delete(RUNS.format(namespace=namespace, name=name), uid)

    async def job(self, namespace: str, name: str) -> Body | None:
        """A PyTorchJob, None if there is none."""
        return await self._get(f"{JOBS.format(namespace=namespace)}/{name}")

    async def create_job(self, job: Body) -> Body:
        """The job as it was created. Raises Conflict if there is one of that name, Refused if it lost a field."""
        metadata = job["metadata"]
        made = await self._call("POST", JOBS.format(namespace=metadata["namespace"]), job)
        lost = sorted(set(job["spec"]) - set(made["spec"]))
        if lost:
            await self.delete_job(metadata["namespace"], metadata["name"], made["metadata"]["uid"])
            raise Refused(422, f"this cluster's PyTorchJobs have no spec.{lost[0]}: {_MISSING['pytorchjobs']}")
        return made

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete that very job, its pods with it; nothing happens if it is gone."""
        await self._delete(f"{JOBS.format(namespace=namespace)}/{name}", uid)

    async def nudge_job(self, namespace: str, name: str, uid: str, now: datetime) -> None:
        """Touch that very job, so that training-operator looks at it now; nothing happens if it is gone."""
        body = {"metadata": {"uid": uid, "annotations": {NUDGED: now.isoformat(timespec="seconds")}}}
        path = f"{JOBS.format(namespace=namespace)}/{name}"
        await self._if_there("PATCH", path, body, content="application/merge-patch+json")

    async def unmade_pods(self, namespace: str) -> dict[str, Unmade]:
        """By the uid of each job some of whose pods could not be made: what training-operator said last of it."""
        query = {"fieldSelector": "involvedObject.kind=PyTorchJob,type=Warning"}
        events = json.loads(await self._text("GET", EVENTS.format(namespace=namespace), query=query))["items"]
        failed = [e for e in events if e.get("reason", "").startswith("FailedCreate") and e.get("lastTimestamp")]
        failed.sort(key=lambda event: event["lastTimestamp"])
        return {
            event["involvedObject"]["uid"]: Unmade(parse_time(event["lastTimestamp"]), event.get("message", ""))
            for event in failed
        }

    async def pods(self, namespace: str, job: str) -> list[Body]:
        """The pods of a PyTorchJob."""
        query = {"labelSelector": f"{JOB_LABEL}={job}"}
        found: list[Body] = json.loads(await self._text("GET", PODS.format(namespace=namespace), query=query))["items"]
        return found

    async def log_end(self, namespace: str, pod: str) -> str:
        """The end of a pod's log; empty if it has none yet."""
        path = f"{PODS.format(namespace=namespace)}/{pod}/log"
        try:
            query = {"container": "pytorch", "tailLines": "40", "limitBytes": LOG_BYTES}
            return await self._text("GET", path, query=query, seconds=LOG_SECONDS)
        except (ApiException, Refused) as error:
            if error.status in (400, 404):  # the container has not started, or the pod is gone
                return ""
            raise

    async def has_queue(self, namespace: str, name: str) -> bool:
        """True if Kueue has a LocalQueue of that name."""
        return await self._get(f"{QUEUES.format(namespace=namespace)}/{name}") is not None

    async def has_nodes(self, labels: Mapping[str, str]) -> bool:
        """True if a node has these labels, or if this operator may not know: nodes belong to no namespace."""
        query = {"labelSelector": ",".join(f"{name}={value}" for name, value in sorted(labels.items())), "limit": 1}
        try:
            return bool(json.loads(await self._text("GET", NODES, query=query))["items"])
        except Refused as error:
            if error.status == 403:
                return True
            raise

    async def create_event(self, event: Body) -> None:
        """Leave an event; one that is there already is the same."""
        try:
            await self._call("POST", EVENTS.format(namespace=event["metadata"]["namespace"]), event)
        except (Conflict, Refused):  # said already, or the namespace goes away: nobody is lost by a missing event
            return

    async def lease(self, namespace: str, name: str) -> Body | None:
        """A Lease, None if there is none."""
        return await self._get(f"{LEASES.format(namespace=namespace)}/{name}")

    async def create_lease(self, lease: Body) -> Body:
        """The lease as it was made. Raises Conflict if there is one."""
        return await self._call("POST", LEASES.format(namespace=lease["metadata"]["namespace"]), lease)

    async def replace_lease(self, lease: Body) -> Body:
        """The lease as it is now. Raises Conflict if it is no longer as it was read."""
        metadata = lease["metadata"]
        return await self._call("PUT", f"{LEASES.format(namespace=metadata['namespace'])}/{metadata['name']}", lease)

    async def _get(self, path: str) -> Body | None:
        try:
            return await self._call("GET", path)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    async def _delete(self, path: str, uid: str) -> None:
        await self._if_there("DELETE", path, {"preconditions": {"uid": uid}, "propagationPolicy": "Background"})

    async def _if_there(self, method: str, path: str, body: Body, *, content: str = "application/json") -> None:
        """Ask for what names a uid; nothing happens if that object is gone, whatever has its name by now."""
        try:
            await self._call(method, path, body, content=content)
        except Conflict:
            return
        except Refused as error:
            if "metadata.uid" not in str(error):  # how a patch is told that it is another's
                raise
        except ApiException as error:
            if error.status != 404:
                raise

    async def _call(
        self, method: str, path: str, body: Body | None = None, *, content: str = "application/json"
    ) -> Body:
        answer: Body = json.loads(await self._text(method, path, body, content=content))
        return answer

    async def _text(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        content: str = "application/json",
        query: Mapping[str, Any] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> str:
        await self._bucket.take()
        headers = {"Accept": "application/json", "Content-Type": content}
        request = await self._client.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = await self._client.call_api(*request, _request_timeout=seconds)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except ApiException as error:
            raise meaning(error) from error
        if response.status >= 400:
            raise meaning(ApiException(status=response.status, reason=response.reason, body=data.decode()))
        return data.decode(errors="replace")


@contextlib.asynccontextmanager
async def connected(requests_per_second: float, burst: int) -> AsyncIterator[Cluster]:
    """The cluster as the pod's own identity sees it, else that of the user's kubeconfig."""
    found = Configuration()
    try:
        config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=found)  # type: ignore[no-untyped-call]
    # Else every request has a thread read ~/.netrc and the proxy variables anew; a kubeconfig names its own proxy.
    found.client_session_kwargs = {"trust_env": False}
    async with ApiClient(found) as client:
        yield Cluster(client, Bucket(requests_per_second, burst))

"""Kueue as a local process beside a control plane, its webhooks for PyTorchJobs and for its own kinds included."""

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import yaml

from cluster_binaries import binary, module_folder
from control_plane import ControlPlane, process, wait_for
from s3_server import free_port
from training_operator import answers, webhook_certificates

NAMESPACE, SERVICE, SECRET = "kueue-system", "kueue-webhook-service", "kueue-webhook-server-cert"
CA_NAME = "kueue-ca"  # a constant of its program
# Everything else that Kueue could queue is not in these clusters.
HANDLED = {"pytorchjobs", "clusterqueues", "cohorts", "localqueues", "resourceflavors", "workloads"}


@contextlib.contextmanager
def kueue(plane: ControlPlane) -> Iterator[None]:
    """PyTorchJobs with a queue label wait for quota meanwhile."""
    certificates = plane.folder / "kueue-certificates"
    certificates.mkdir()
    pair = webhook_certificates(f"{SERVICE}.{NAMESPACE}.svc", CA_NAME)
    for name, content in pair.items():
        (certificates / name).write_bytes(content)
    port, health = free_port(), free_port()
    install(plane, f"https://localhost:{port}", pair)
    config = plane.folder / "kueue.yaml"
    config.write_text(yaml.safe_dump({
        "apiVersion": "config.kueue.x-k8s.io/v1beta2", "kind": "Configuration", "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"}, "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False}, "clientConnection": {"qps": 300, "burst": 600},
        # Without this it looks for a certificate of its metrics below /etc.
        "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        "integrations": {"frameworks": ["kubeflow.org/pytorchjob"]},
    }))  # fmt: skip
    command = [str(binary("kueue")), f"--config={config}", "--feature-gates=VisibilityOnDemand=false"]
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
    with process(command, plane.folder / "kueue.log", environment):
        wait_for("Kueue is ready", lambda: answers(f"http://127.0.0.1:{health}/readyz"))
        yield


def install(plane: ControlPlane, address: str, pair: dict[str, bytes]) -> None:
    components = module_folder("kueue", "sigs.k8s.io/kueue") / "config" / "components"
    plane.kubectl("create", "namespace", NAMESPACE)
    data = {name: base64.b64encode(content).decode() for name, content in pair.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": NAMESPACE, "name": SECRET}, "data": data}
    plane.kubectl("create", "-f", "-", stdin=json.dumps(secret))
    authority = data["ca.crt"]
    for crd in sorted((components / "crd" / "bases").glob("*.yaml")):
        made = yaml.safe_load(crd.read_text())
        made["spec"]["conversion"] = conversion(made, address, authority)
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))
        plane.wait_established(made["metadata"]["name"])
    for made in yaml.safe_load_all((components / "webhook" / "manifests.yaml").read_text()):
        made["metadata"]["name"] = f"kueue-{made['metadata']['name']}"
        made["webhooks"] = [hook for hook in made["webhooks"] if HANDLED & set(hook["rules"][0]["resources"])]
        for hook in made["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": f"{address}{path}", "caBundle": authority}
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))


def conversion(crd: dict[str, Any], address: str, authority: str) -> dict[str, Any]:
    """How the API server turns one version of the kind into another: Kueue does, where there are several."""
    if sum(version["served"] for version in crd["spec"]["versions"]) == 1:
        return {"strategy": "None"}
    client = {"url": f"{address}/convert", "caBundle": authority}
    return {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}}


def quota(gpus: int, *, stop: str = "None") -> str:
    """A ClusterQueue of so many GPUs with its LocalQueue `team` in namespace team, as JSON.

    ``stop`` is its stopPolicy: HoldAndDrain takes the place of everything that it has admitted.
    """
    share = {"name": "gpus", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": gpus}]}
    cluster_queue = {"resourceGroups": [{"coveredResources": ["nvidia.com/gpu"], "flavors": [share]}],
                     "namespaceSelector": {}, "stopPolicy": stop}  # fmt: skip
    kinds = {
        "ResourceFlavor": ({"name": "gpus"}, {}),
        "ClusterQueue": ({"name": "gpus"}, cluster_queue),
        "LocalQueue": ({"name": "team", "namespace": "team"}, {"clusterQueue": "gpus"}),
    }
    items = [
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": meta, "spec": spec}
        for kind, (meta, spec) in kinds.items()
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})

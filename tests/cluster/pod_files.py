"""What a pod finds in its environment and volumes, asked of the API server as a kubelet does."""

import base64
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node_api import ApiError, Object
from node_pod import NodePod

MEMORY = Path("/dev/shm")
CONFIG = "CreateContainerConfigError"
_KIND = {"secrets": "Secret", "configmaps": "ConfigMap"}
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class WaitingError(Exception):
    """Something that the pod refers to cannot be had (yet); reason and text are a kubelet's."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def quantity(text: str) -> int:
    """A resource amount such as 4Gi in units or bytes."""
    found = re.fullmatch(r"([\d.]+)(\w*)", str(text))
    assert found, text
    return int(float(found[1]) * _UNITS[found[2]])


def expanded(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced by what is known, ``$$`` by ``$``, as Kubernetes does in commands and variables."""
    return re.sub(r"\$\$|\$\(([\w.-]+)\)", lambda m: "$" if m[0] == "$$" else known.get(m[1], m[0]), text)


class PodFiles:
    """Volumes and variables of one pod. ``folder`` holds what lies on disk, and is gone after ``clean``."""

    def __init__(self, pod: NodePod, folder: Path) -> None:
        self.pod, self.folder = pod, folder
        self.memory = MEMORY / f"egt-pod-{pod.uid}"
        self.volumes: dict[str, Path] = {}

    def clean(self) -> None:
        """Nothing of the pod is left on disk or in memory."""
        for folder in (self.folder, self.memory):
            shutil.rmtree(folder, ignore_errors=True)

    async def make_volumes(self) -> None:
        """Every volume is there. Raises WaitingError naming what a volume refers to and does not exist."""
        for volume in self.pod.object["spec"].get("volumes", []):
            name = volume["name"]
            if "hostPath" in volume:
                self.volumes[name] = Path(volume["hostPath"]["path"])
                continue
            if "persistentVolumeClaim" in volume:
                self.volumes[name] = await self._claimed(volume["persistentVolumeClaim"]["claimName"])
                continue
            in_memory = volume.get("emptyDir", {}).get("medium") == "Memory"
            folder = self.volumes[name] = (self.memory if in_memory else self.folder / "volumes") / name
            folder.mkdir(parents=True, exist_ok=True)
            if "emptyDir" in volume:
                folder.chmod(0o777)
            for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
                await self._fill(folder, source)

    async def _claimed(self, claim: str) -> Path:
        """The scheduler waits until a claim is bound; its volume can only be a folder of the host here."""
        found = await self.pod.api.call(
            "GET", f"/api/v1/namespaces/{self.pod.namespace}/persistentvolumeclaims/{claim}"
        )
        volume = await self.pod.api.call("GET", f"/api/v1/persistentvolumes/{found['spec']['volumeName']}")
        return Path(volume["spec"]["hostPath"]["path"])

    async def _fill(self, folder: Path, source: Object) -> None:
        for path, content in (await self._contents(source)).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o644)

    async def _contents(self, source: Object) -> dict[str, bytes]:
        if "secret" in source or "configMap" in source:
            kind, reference = (
                ("secrets", source["secret"]) if "secret" in source else ("configmaps", source["configMap"])
            )
            data = await self._data(kind, reference.get("secretName") or reference["name"], reference.get("optional"))
            items = reference.get("items")
            return {item["path"]: data[item["key"]] for item in items} if items else data
        if "downwardAPI" in source:
            items = source["downwardAPI"]["items"]
            return {item["path"]: self.field(item["fieldRef"]["fieldPath"]).encode() for item in items}
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: (await self._token(source["serviceAccountToken"])).encode()}
        return {}

    async def _token(self, wanted: Object) -> str:
        meta, account = self.pod.object["metadata"], self.pod.object["spec"].get("serviceAccountName", "default")
        bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec = {"audiences": [wanted["audience"]] if "audience" in wanted else [],
                "expirationSeconds": wanted.get("expirationSeconds", 3600), "boundObjectRef": bound}  # fmt: skip
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{self.pod.namespace}/serviceaccounts/{account}/token"
        return str((await self.pod.api.call("POST", path, body))["status"]["token"])

    async def _data(self, kind: str, name: str, optional: bool | None) -> dict[str, bytes]:
        try:
            found = await self.pod.api.call("GET", f"/api/v1/namespaces/{self.pod.namespace}/{kind}/{name}")
        except ApiError as error:
            if error.code != 404:
                raise
            if optional:
                return {}
            raise WaitingError(CONFIG, f'{kind[:-1]} "{name}" not found') from error
        plain, coded = found.get("data") or {}, found.get("binaryData") or {}
        if kind == "secrets":
            plain, coded = {}, plain
        return {k: v.encode() for k, v in plain.items()} | {k: base64.b64decode(v) for k, v in coded.items()}

    def field(self, path: str) -> str:
        """The value of a downward-API field."""
        made = self.pod.object
        entry = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
        if entry:
            return str(made["metadata"].get(entry[1], {}).get(entry[2], ""))
        return str({
            "metadata.name": self.pod.name, "metadata.namespace": self.pod.namespace, "metadata.uid": self.pod.uid,
            "spec.nodeName": made["spec"]["nodeName"], "status.podIP": self.pod.address,
            "spec.serviceAccountName": made["spec"].get("serviceAccountName", "default"),
        }[path])  # fmt: skip

    async def environment(self, box: Object, image: Mapping[str, str]) -> dict[str, str]:
        """Variables of a container, above those of its image. Raises WaitingError in a kubelet's words."""
        found = dict(image)
        for source in box.get("envFrom", []):
            kind, reference = ("secrets", source["secretRef"]) if "secretRef" in source else (
                "configmaps", source["configMapRef"])  # fmt: skip
            data = await self._data(kind, reference["name"], reference.get("optional"))
            found |= {source.get("prefix", "") + key: value.decode() for key, value in data.items()}
        for variable in box.get("env", []):
            value = await self._value(variable, found)
            if value is not None:
                found[variable["name"]] = value
        return found

    async def _value(self, variable: Object, known: Mapping[str, str]) -> str | None:
        source: dict[str, Any] | None = variable.get("valueFrom")
        if source is None:
            return expanded(variable.get("value", ""), known)
        if "fieldRef" in source:
            return self.field(source["fieldRef"]["fieldPath"])
        kind, key = ("secrets", source["secretKeyRef"]) if "secretKeyRef" in source else (
            "configmaps", source["configMapKeyRef"])  # fmt: skip
        data = await self._data(kind, key["name"], key.get("optional"))
        if key["key"] in data:
            return data[key["key"]].decode()
        if key.get("optional"):
            return None
        raise WaitingError(
            CONFIG, f"couldn't find key {key['key']} in {_KIND[kind]} {self.pod.namespace}/{key['name']}"
        )

    def mounts(self, box: Object) -> list[tuple[str, str, bool]]:
        """Source, place and read-only of each mount of a container, outer places first."""
        found = []
        for mount in sorted(box.get("volumeMounts", []), key=lambda mount: mount["mountPath"].count("/")):
            source = self.volumes[mount["name"]] / mount.get("subPath", "")
            if not source.exists():
                source.mkdir(parents=True)
            found.append((str(source), mount["mountPath"], bool(mount.get("readOnly"))))
        return found


def host_names(pod: NodePod, pods: list[NodePod], services: list[Object]) -> str:
    """/etc/hosts of the pod: its own name, and each Service as the addresses of its pods (there is no proxy)."""
    lines = ["127.0.0.1 localhost", f"{pod.address} {pod.name[:63]}"]
    for service in services:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        names = [f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"]
        if namespace == pod.namespace:
            names.insert(0, name)
        selector = (service["spec"].get("selector") or {}).items()
        headless = service["spec"].get("clusterIP") == "None"
        for other in pods:
            chosen = selector and selector <= other.object["metadata"].get("labels", {}).items()
            if chosen and other.namespace == namespace and (other.ready or headless):
                lines.append(" ".join([other.address, *names]))
    return "\n".join(lines) + "\n"


def write_in_place(file: Path, text: str) -> None:
    """The file says ``text``; it stays the same file, because pods have it mounted."""
    if file.exists() and file.read_text() == text:
        return
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(handle, text.encode(), 0)
    os.ftruncate(handle, len(text.encode()))
    os.close(handle)

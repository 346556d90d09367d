"""A whole run on a test cluster, as its user starts it: data on S3, a teacher in a pod, helm install, kubectl apply."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cluster import Cluster, running_cluster
from control_plane import wait_for
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import StoreRef
from egt_pipeline.store import open_store
from node_agent import NodeShape
from process_pods import ProcessPods
from s3_server import cache_folder
from small_run import EGT, spec_of
from team_runs import serve_runs

ROOT = Path(__file__).parents[2]
BUCKET = "egt-demo"
CPU_ONLY = {"resources": {"gpu": 0}}
TEACHER_PORT = 18765
LIST = {"apiVersion": "v1", "kind": "List"}


def small_manifest() -> dict[str, Any]:
    """The small run of the other tests with its sources on S3, two ranks for sft and two probe workers."""
    run = spec_of(TEACHER_PORT)
    spec = run["spec"]
    spec["model"]["source"] = f"s3://{BUCKET}/model"
    for source in (spec["data"]["sft"], spec["data"]["rl"], *spec["data"]["evaluate"]):
        source["source"] = f"s3://{BUCKET}/{source['source']}"
    spec["store"] = {"uri": f"s3://{BUCKET}/runs", "credentialsSecret": "store"}
    spec["distill"]["teacher"]["baseUrl"] = f"http://digits-teacher.default:{TEACHER_PORT}/v1"
    for stage in ("sft", "probe", "rl", "evaluate"):
        spec[stage] |= CPU_ONLY
    spec["sft"] |= {"processes": 2, "microBatchSize": 32, "maxSteps": 40}
    return run


def example_manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "crds" / "examples" / "digits-cluster.yaml").read_text())
    return found


@dataclass(frozen=True)
class ClusterRun:
    """A cluster that has everything that runs of the digits need."""

    cluster: Cluster
    folder: Path

    @property
    def bucket(self) -> Path:
        """The bucket's objects as files."""
        return self.cluster.s3.folder / BUCKET

    def bring_sources(self, **sizes: int) -> None:
        """Digits and a tiny model lie on S3."""
        counts = [word for name, count in sizes.items() for word in (f"--{name}", str(count))]
        subprocess.run([EGT, "data", "digits", "data", *counts], cwd=self.folder, check=True, capture_output=True)
        subprocess.run([EGT, "model", "tiny", "model"], cwd=self.folder, check=True, capture_output=True)
        for name in ("data", "model"):
            # On this server a bucket is a folder and its objects are files; the truth stays at home.
            shutil.copytree(self.folder / name, self.bucket / name, ignore=shutil.ignore_patterns("truth.parquet"))

    def bring_keys(self) -> None:
        """The store's credentials are there."""
        keys = [f"--from-literal={name}={os.environ[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        self.cluster.kubectl("create", "secret", "generic", "store", *keys)

    def install(self) -> None:
        """The operator is installed from its chart and ready, and a teacher and the store's credentials are there."""
        self.bring_keys()
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps({**LIST, "items": [*teacher(), *cache()]}))
        quick = [
            "settings.cacheClaim=cache",
            "settings.progressSeconds=1",
            "settings.backoffSeconds=1",
            "settings.pendingSeconds=5",
        ]
        sets = [word for value in quick for word in ("--set", value)]
        self.cluster.helm("install", "egt", str(ROOT / "charts" / "egt-operator"), "--namespace", "egt-system",
                          "--create-namespace", *sets, "--wait", "--timeout", "90s")  # fmt: skip
        self.cluster.kubectl("wait", "deployment/digits-teacher", "--for=condition=Available", "--timeout=120s")

    def apply(self, run: dict[str, Any]) -> Path:
        """The manifest's file, applied; its store is this cluster's S3 server."""
        run["spec"]["store"]["endpoint"] = self.cluster.s3.endpoint
        path = self.folder / f"{run['metadata']['name']}.yaml"
        path.write_text(json.dumps(run, indent=1))  # which is YAML too, and knows no aliases
        self.cluster.kubectl("apply", "-f", str(path))
        return path

    def wait_complete(self, name: str, seconds: float) -> dict[str, Any]:
        """The status of the run once it is complete. Raises TimeoutError, or AssertionError when it has failed."""

        def over() -> bool:
            assert self.status(name).get("phase") != "Failed", json.dumps(self.status(name), indent=1)
            return bool(self.status(name).get("phase") == "Complete")

        wait_for(f"run {name} is complete", over, seconds)
        return self.status(name)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", "egt", name, "-o", "json")).get("status", {})
        return found

    def stage(self, run: str, name: str) -> dict[str, Any]:
        """The status of one stage; empty before the run has any."""
        return next((stage for stage in self.status(run).get("stages", ()) if stage["name"] == name), {})

    def suspend(self, name: str, value: bool) -> None:
        patch = json.dumps({"spec": {"suspend": value}})
        self.cluster.kubectl("patch", "egt", name, "--type=merge", "-p", patch)

    def manifests(self, store: str = "runs") -> dict[str, dict[str, Any]]:
        """The manifest of each published artifact by its stage."""
        files = (self.bucket / store / "artifacts").glob("*/*/manifest.json")
        return {file.parts[-3]: json.loads(file.read_text()) for file in files}

    def table(self, stage: str, file: str, store: str = "runs") -> pa.Table:
        """A table of the stage's artifact, read as the next stage reads it."""
        opened = open_store(StoreRef(uri=f"s3://{BUCKET}/{store}", endpoint=self.cluster.s3.endpoint))
        manifest = opened.manifest(StageName(stage), self.manifests(store)[stage]["digest"])
        assert manifest is not None, stage
        return pq.read_table(opened.fetch(manifest, self.folder / "fetched" / store) / f"{file}.parquet")

    def egt(self, *arguments: str) -> str:
        """What the command prints. Raises AssertionError with its words when it fails."""
        done = subprocess.run([EGT, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextlib.contextmanager
def without_operator(folder: Path, **sizes: int) -> Iterator[ClusterRun]:
    """A cluster whose pods are processes, with everything that runs need but an operator; data of these sizes."""
    with running_cluster(NodeShape(), ProcessPods) as cluster:
        serve_runs(cluster)
        (cluster.s3.folder / BUCKET).mkdir()
        place = ClusterRun(cluster, folder)
        place.bring_keys()
        place.bring_sources(**sizes)
        yield place


def cache() -> list[dict[str, Any]]:
    """A claim for what pods may find again, on a folder that stays between test runs, as between those of a team."""
    folder = cache_folder().with_name("pods")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
    volume = {"capacity": size, "accessModes": modes, "storageClassName": "", "hostPath": {"path": str(folder)},
              "claimRef": {"namespace": "default", "name": "cache"}}  # fmt: skip
    claim = {"resources": {"requests": size}, "accessModes": modes, "storageClassName": "", "volumeName": "cache"}
    name = {"name": "cache", "namespace": "default"}
    return [{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "cache"}, "spec": volume},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": name, "spec": claim}]  # fmt: skip


def teacher() -> list[dict[str, Any]]:
    """The demo's teacher as a Deployment with its Service."""
    labels = {"app": "digits-teacher"}
    meta = {"name": "digits-teacher", "namespace": "default"}
    probe = {"httpGet": {"path": "/v1/models", "port": TEACHER_PORT}, "periodSeconds": 1}
    command = ["egt", "data", "teacher", "--host", "0.0.0.0", "--port", str(TEACHER_PORT)]
    # Its classifier learns at start: with as many threads as cores, and these in use, that takes minutes.
    box = {"name": "teacher", "image": "egt-pipeline", "command": command, "readinessProbe": probe,
           "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}  # fmt: skip
    template = {"metadata": {"labels": labels}, "spec": {"containers": [box]}}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
                  "spec": {"selector": {"matchLabels": labels}, "template": template}}  # fmt: skip
    service = {"apiVersion": "v1", "kind": "Service", "metadata": meta,
               "spec": {"selector": labels, "ports": [{"port": TEACHER_PORT}]}}  # fmt: skip
    return [deployment, service]

"""The programs of a real Kubernetes, built once from pinned Go modules into a cache outside the checkout."""

import fcntl
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from s3_server import cache_folder, go

KUBERNETES = "1.36.3"
GO_FILES = Path(__file__).parent / "go"
# What a user's KUBEBUILDER_ASSETS (setup-envtest) ships.
ENVTEST = ("etcd", "kube-apiserver", "kubectl")
# Without the version `kubectl version` and Helm's capability checks see v0.0.0.
STAMP = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in (("gitVersion", f"v{KUBERNETES}"), ("gitMajor", "1"), ("gitMinor", "36"))
)


@dataclass(frozen=True)
class Program:
    """One package of the Go module whose go.mod lies in go/<module>."""

    module: str
    package: str
    flags: str = ""


PROGRAMS = {
    "etcd": Program("etcd", "go.etcd.io/etcd/server/v3"),
    "helm": Program("helm", "helm.sh/helm/v3/cmd/helm"),
    "kueue": Program("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
    "training-operator.v1": Program(
        "training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"
    ),
} | {
    name: Program("kubernetes", f"k8s.io/kubernetes/cmd/{name}", STAMP)
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
}


def binary(name: str) -> Path:
    """The program, from KUBEBUILDER_ASSETS where that ships it, else from the cache, where it is built once.

    Raises RuntimeError that says how to get Go when there is none.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in ENVTEST:
        return Path(assets) / name
    target = cache_folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".lock-{name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            build(PROGRAMS[name], target)
    return target


def build(program: Program, target: Path) -> None:
    """The target holds the program afterwards, in whole: a build that is cut off leaves none."""
    unfinished = target.with_suffix(".building")
    flags = f"-s -w {program.flags}".strip()
    command = [go(), "build", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", str(unfinished), program.package]
    subprocess.run(command, check=True, cwd=GO_FILES / program.module)
    unfinished.rename(target)


def module_folder(name: str, path: str) -> Path:
    """Where Go keeps the sources of module `path`, at the version that go/<name>/go.mod pins."""
    subprocess.run([go(), "mod", "download", path], check=True, cwd=GO_FILES / name)
    command = [go(), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path]
    listed = subprocess.run(command, check=True, cwd=GO_FILES / name, capture_output=True, text=True)
    return Path(listed.stdout.strip())

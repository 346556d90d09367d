"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback, gone when the context ends."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster_binaries import binary
from cluster_certificates import Authority
from s3_server import free_port

# A cold start takes 9 s on two idle cores; ten times that is a machine in trouble.
START_SECONDS = 90.0


@dataclass(frozen=True)
class ControlPlane:
    """An API server as its administrator sees it. authority is None where the cluster is a user's own."""

    kubeconfig: Path
    folder: Path
    authority: Authority | None

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises RuntimeError with kubectl's own words when it fails."""
        command = [str(binary("kubectl")), "--kubeconfig", str(self.kubeconfig), *args]
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *args: str) -> dict[str, object]:
        """The object that `kubectl get` names."""
        found: dict[str, object] = json.loads(self.kubectl("get", *args, "-o", "json"))
        return found

    def wait_established(self, crd: str) -> None:
        """Returns once the API server serves the resource; kubectl wait gives up where no condition is there yet."""
        wait_for(f"{crd} is served", lambda: "True" in self.kubectl(
            "get", "crd", crd, "-o", "jsonpath={.status.conditions[?(@.type=='Established')].status}"
        ))  # fmt: skip


@contextlib.contextmanager
def process(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A running program that dies with this process, whatever ends it; its output is in the log."""
    # pdeathsig follows the thread that starts the program: the main thread lives as long as the process.
    wrapped = ["setpriv", "--pdeathsig", "KILL", *command]
    with log.open("ab") as out:
        running = subprocess.Popen(wrapped, stdout=out, stderr=out, start_new_session=True, env=env)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(what: str, true: Callable[[], object], seconds: float = START_SECONDS) -> None:
    """Returns once `true` holds; a RuntimeError of it counts as not yet. Raises TimeoutError that names `what`."""
    deadline, last = time.monotonic() + seconds, "it stayed false"
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except RuntimeError as error:
            last = str(error)
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s; {last}")


@contextlib.contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """A control plane of its own, or the cluster of EGT_TEST_KUBECONFIG, which is left as it is."""
    own = os.environ.get("EGT_TEST_KUBECONFIG")
    folder = Path(tempfile.mkdtemp(prefix="egt-cluster-"))
    try:
        if own:
            yield ControlPlane(Path(own), folder, None)
        else:
            with started(folder) as plane:
                yield plane
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[ControlPlane]:
    authority = Authority.make(folder)
    etcd, peer, api = free_port(), free_port(), free_port()
    server = f"https://127.0.0.1:{api}"
    plane = ControlPlane(authority.kubeconfig("admin", "system:masters", server), folder, authority)
    with contextlib.ExitStack() as stack:

        def run(name: str, *flags: str) -> None:
            stack.enter_context(process([str(binary(name)), *flags], folder / f"{name}.log"))

        run("etcd", *etcd_flags(authority, etcd, peer))
        run("kube-apiserver", *api_flags(authority, etcd, api))
        wait_for("kube-apiserver is ready", lambda: plane.kubectl("get", "--raw", "/readyz"))
        for name, flags in (("kube-controller-manager", controller_flags(authority)), ("kube-scheduler", [])):
            config = authority.kubeconfig(f"system:{name}", None, server)
            run(name, f"--kubeconfig={config}", "--leader-elect=false", f"--secure-port={free_port()}",
                "--bind-address=127.0.0.1", *flags)  # fmt: skip
        wait_for("the default ServiceAccount exists", lambda: plane.get("serviceaccount", "default"))
        yield plane


def etcd_flags(authority: Authority, port: int, peer: int) -> list[str]:
    crt, key = authority.issue("etcd", "etcd")
    client = f"https://127.0.0.1:{port}"
    return [
        f"--data-dir={authority.folder / 'etcd'}", f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}", f"--cert-file={crt}", f"--key-file={key}",
        "--client-cert-auth", f"--trusted-ca-file={authority.ca}",
        # The data is thrown away with the folder, so it need not survive a power cut.
        "--unsafe-no-fsync",
    ]  # fmt: skip


def api_flags(authority: Authority, etcd: int, port: int) -> list[str]:
    crt, key = authority.issue("kube-apiserver", "kube-apiserver", "system:masters")
    folder = authority.folder
    return [
        f"--etcd-servers=https://127.0.0.1:{etcd}", f"--etcd-cafile={authority.ca}",
        f"--etcd-certfile={crt}", f"--etcd-keyfile={key}", "--bind-address=127.0.0.1", f"--secure-port={port}",
        f"--tls-cert-file={crt}", f"--tls-private-key-file={key}", f"--client-ca-file={authority.ca}",
        f"--kubelet-client-certificate={crt}", f"--kubelet-client-key={key}",
        f"--kubelet-certificate-authority={authority.ca}", "--kubelet-preferred-address-types=Hostname",
        "--authorization-mode=Node,RBAC", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
    ]  # fmt: skip


def controller_flags(authority: Authority) -> list[str]:
    return [
        "--use-service-account-credentials=true", f"--root-ca-file={authority.ca}",
        f"--service-account-private-key-file={authority.folder / 'service-accounts.key'}",
        # The default of 20 queries a second deletes ten pods a second.
        "--kube-api-qps=300", "--kube-api-burst=600",
    ]  # fmt: skip

"""The Kubeflow training-operator as a local process beside a control plane, its validating webhook included."""

import base64
import contextlib
import fcntl
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster_binaries import binary, module_folder
from control_plane import ControlPlane, process, wait_for
from s3_server import cache_folder, free_port

NAMESPACE, SERVICE = "kubeflow", "training-operator"
# The names are constants of training-operator's program.
SECRET, WEBHOOK = "training-operator-webhook-cert", "validator.training-operator.kubeflow.org"
CA_NAME = "training-operator-ca"
# It waits for this file to appear, wherever its server reads certificates from.
MOUNTED = Path("/tmp/k8s-webhook-server/serving-certs/tls.crt")
# It renews what ends within 90 days, and would then have to be restarted.
LIFE = timedelta(days=365)
# Its own init container needs an image and a DNS server; worker pods wait in torch's rendezvous anyway.
RESTRICTED = "{allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}"
INIT_CONTAINER = f'- {{name: init-pytorch, image: none, command: ["true"], securityContext: {RESTRICTED}}}\n'


@contextlib.contextmanager
def training_operator(plane: ControlPlane) -> Iterator[None]:
    """PyTorchJobs of that control plane are validated and run meanwhile."""
    certificates = plane.folder / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    pair = webhook_certificates(f"{SERVICE}.{NAMESPACE}.svc", CA_NAME)
    for name, content in pair.items():
        (certificates / name).write_bytes(content)
    port, probe = free_port(), free_port()
    install(plane, pair, port)
    template = plane.folder / "init-container.yaml"
    template.write_text(INIT_CONTAINER)
    command = [
        str(binary("training-operator.v1")), f"--kubeconfig={plane.kubeconfig}", "--enable-scheme=pytorchjob",
        # The default of 20 queries a second throttles any test of scale.
        "--controller-threads=8", "--kube-api-qps=500", "--kube-api-burst=1000",
        f"--pytorch-init-container-template-file={template}", f"--webhook-server-port={port}",
        f"--health-probe-bind-address=127.0.0.1:{probe}", "--metrics-bind-address=0",
    ]  # fmt: skip
    # Its webhook server looks for certificates under TMPDIR.
    environment = {**os.environ, "TMPDIR": str(plane.folder)}
    with process(command, plane.folder / "training-operator.log", environment):
        with certificates_seem_mounted():
            wait_for("training-operator is ready", lambda: answers(f"http://127.0.0.1:{probe}/readyz"))
        yield


def install(plane: ControlPlane, pair: dict[str, bytes], port: int) -> None:
    manifests = module_folder("training-operator", "github.com/kubeflow/training-operator") / "manifests" / "base"
    crd = manifests / "crds" / "kubeflow.org_pytorchjobs.yaml"
    # Client-side apply would keep the CRD in an annotation, which is too small for it.
    plane.kubectl("apply", "--server-side", "-f", str(crd))
    plane.wait_established("pytorchjobs.kubeflow.org")
    webhooks = yaml.safe_load((manifests / "webhook" / "manifests.yaml").read_text())["webhooks"]
    hook = next(hook for hook in webhooks if hook["rules"][0]["resources"] == ["pytorchjobs"])
    path = hook["clientConfig"]["service"]["path"]
    hook["clientConfig"] = {
        "service": {"namespace": NAMESPACE, "name": SERVICE, "port": port, "path": path},
        "caBundle": base64.b64encode(pair["ca.crt"]).decode(),
    }
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": NAMESPACE, "name": SECRET},
         "data": {name: base64.b64encode(content).decode() for name, content in pair.items()}},
        # The API server dials this name and still verifies the Service's, so the webhook needs no pod network.
        {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": SERVICE},
         "spec": {"type": "ExternalName", "externalName": "localhost"}},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
         "metadata": {"name": WEBHOOK}, "webhooks": [hook]},
    ]  # fmt: skip
    for made in objects:
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))


@contextlib.contextmanager
def certificates_seem_mounted() -> Iterator[None]:
    """The file that the operator waits for exists meanwhile; starts on one machine take turns."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / ".lock-serving-certs").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        MOUNTED.parent.mkdir(parents=True, exist_ok=True)
        MOUNTED.touch()
        try:
            yield
        finally:
            MOUNTED.unlink()
            for folder in (MOUNTED.parent, MOUNTED.parent.parent):
                folder.rmdir()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def webhook_certificates(service: str, issuer: str) -> dict[str, bytes]:
    """What a webhook's Secret holds: an authority and the Service's certificate, in the forms its rotator accepts.

    The rotator makes all of it anew unless the authority has the name that its program knows.
    """
    authority_key, key = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    authority = sign(issuer, authority_key.public_key(), issuer, authority_key, ca=True)
    signed = sign(service, key.public_key(), issuer, authority_key, ca=False)
    return {
        "ca.crt": authority.public_bytes(serialization.Encoding.PEM), "ca.key": pkcs1(authority_key),
        "tls.crt": signed.public_bytes(serialization.Encoding.PEM), "tls.key": pkcs1(key),
    }  # fmt: skip


def pkcs1(key: rsa.RSAPrivateKey) -> bytes:
    """The key in the one form that the operator parses."""
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def sign(name: str, key: rsa.RSAPublicKey, issuer: str, signer: rsa.RSAPrivateKey, ca: bool) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    unsigned = (
        x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )  # fmt: skip
    if not ca:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        unsigned = unsigned.add_extension(usage, critical=False)
    return unsigned.sign(signer, hashes.SHA256())

"""Certificates of one test cluster, made anew each time: an authority, and what it signs."""

import base64
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Longer than any test and shorter than anybody's reason to keep one.
LIFE = timedelta(days=2)
# Python 3.13 accepts no authority that does not say that it signs.
SIGNING = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def subject(name: str, group: str | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, group), *parts] if group else parts)


@dataclass(frozen=True)
class Authority:
    """Signs for servers on loopback and for Kubernetes users; everything lies in one folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = subject("egt-test-cluster", None)
        unsigned = (
            builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(SIGNING, critical=True)
        )
        unsigned = unsigned.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        made = cls(folder, key, unsigned.sign(key, hashes.SHA256()))
        made.write("ca", key, made.certificate)
        made.write_key("service-accounts")
        return made

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def issue(self, file: str, name: str, group: str | None = None) -> tuple[Path, Path]:
        """Certificate and key of `name`, good as a server on loopback and as a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.DNSName("kubernetes.default.svc"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        unsigned = (
            builder(subject(name, group), self.certificate.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(usages, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return self.write(file, key, unsigned.sign(self.key, hashes.SHA256()))

    def write(self, file: str, key: ec.EllipticCurvePrivateKey, signed: x509.Certificate) -> tuple[Path, Path]:
        crt, private = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        crt.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(pem(key))
        private.chmod(0o600)
        return crt, private

    def write_key(self, file: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        (self.folder / f"{file}.key").write_bytes(pem(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / f"{file}.pub").write_bytes(public)

    def kubeconfig(self, user: str, group: str | None, server: str) -> Path:
        """A kubeconfig of that user, with everything in it."""
        crt, key = (base64.b64encode(file.read_bytes()).decode() for file in self.issue(user, user, group))
        authority = base64.b64encode(self.ca.read_bytes()).decode()
        path = self.folder / f"{user}.kubeconfig"
        path.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: egt\n"
            f"clusters: [{{name: egt, cluster: {{server: '{server}', certificate-authority-data: {authority}}}}}]\n"
            f"users: [{{name: egt, user: {{client-certificate-data: {crt}, client-key-data: {key}}}}}]\n"
            "contexts: [{name: egt, context: {cluster: egt, user: egt}}]\n"
        )
        path.chmod(0o600)
        return path


def builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key)
        .serial_number(x509.random_serial_number())
        # An hour back: clocks of one machine agree, but a virtual machine's may jump at its start.
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFE)
    )  # fmt: skip

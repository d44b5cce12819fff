"""Certificates made when they are needed: of an authority, a server, clients."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Authority:
    """Signs certificates; its own is ``ca.crt`` in ``folder``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        signed = _builder(self._name, self._name, self._key, NOW - DAY, NOW + 99 * DAY)
        signed = signed.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.cert = _written(folder / f"{name}.crt", signed.sign(self._key, hashes.SHA256()))

    def issue(self, name: str, begins: datetime = NOW - DAY, ends: datetime = NOW + 99 * DAY) -> tuple[str, str]:
        """A certificate for this machine and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        hosts: list[x509.GeneralName] = [x509.DNSName("localhost")]
        hosts += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
        signed = _builder(_named(name), self._name, key, begins, ends)
        signed = signed.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        cert = _written(self.folder / f"{name}.crt", signed.sign(self._key, hashes.SHA256()))
        path = self.folder / f"{name}.key"
        path.touch(0o600)
        path.write_bytes(private(key))
        return cert, str(path)


def private(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    """A key in PEM."""
    kept = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    name: x509.Name, by: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        by, name, key.public_key(), x509.random_serial_number(), not_valid_before=begins, not_valid_after=ends
    )


def _written(path: Path, certificate: x509.Certificate) -> str:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return str(path)

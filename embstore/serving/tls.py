"""Certificates: whether they can be served with, and what the two protocols make of them.

A server that starts with an expired certificate would start well and answer nobody; so it doesn't start.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from embstore.errors import ConfigError
from embstore.serving.settings import TlsFiles

if TYPE_CHECKING:
    import grpc

_SOON_DAYS = 14


def check_files(files: TlsFiles, now: datetime | None = None) -> list[str]:
    """Compare certificates with their key and the clock.

    Returns:
        Warnings: one that ends soon.

    Raises:
        ConfigError: a file that can't be read, a key of another certificate, a certificate that has expired or is not
            valid yet.
    """
    now = now or datetime.now(UTC)
    first = _certificates(files.cert)[0]
    _check_dates(first, f"certificate {files.cert}", now)
    if _public(_key(files.key).public_key()) != _public(first.public_key()):
        do = "name the key that the certificate was made for"
        raise ConfigError(f"key {files.key}", expected=f"that of {files.cert}", found="another", do=do)
    if files.client_ca is not None:
        authorities = _certificates(files.client_ca)
        valid = [of for of in authorities if of.not_valid_before_utc <= now <= of.not_valid_after_utc]
        if not valid:
            _check_dates(authorities[0], f"client CA {files.client_ca}", now)
    server_context(files)
    left = (first.not_valid_after_utc - now).days
    return [f"certificate {files.cert} ends on {_date(first.not_valid_after_utc)}"] if left < _SOON_DAYS else []


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For HTTP: TLS 1.2 or later.

    Raises:
        ConfigError: files that OpenSSL can't use.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as error:
        expected = "a certificate and key to serve with"
        raise ConfigError(f"certificate {files.cert}", expected=expected, found=str(error)) from error
    return context


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """The same for gRPC."""
    import grpc

    key, cert = _read(files.key, "key"), _read(files.cert, "certificate")
    authorities = None if files.client_ca is None else _read(files.client_ca, "client CA")
    return grpc.ssl_server_credentials([(key, cert)], authorities, require_client_auth=authorities is not None)


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("a key that takes a password")


def _certificates(path: str) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, "certificate"))
    except ValueError as error:
        raise ConfigError(f"certificate {path}", expected="PEM certificates", found="something else") from error


def _key(path: str) -> Any:
    expected, text = "a private key in PEM, without a password", _read(path, "key")
    try:
        return serialization.load_pem_private_key(text, password=None)
    except TypeError as error:
        do = f"openssl pkey -in {path} takes it off"
        raise ConfigError(f"key {path}", expected=expected, found="one with a password", do=do) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key {path}", expected=expected, found="something else") from error


def _public(key: Any) -> Any:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check_dates(certificate: x509.Certificate, what: str, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise ConfigError(what, expected="one that is valid today", found=f"it expired on {_date(ends)}", do="renew it")
    if now < begins:
        do = "wait, or set this machine's clock"
        raise ConfigError(what, expected="one that is valid today", found=f"valid from {_date(begins)}", do=do)


def _date(of: datetime) -> str:
    return of.strftime("%Y-%m-%d %H:%M UTC")


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path}", expected="a readable PEM file", found=str(error.strerror)) from error

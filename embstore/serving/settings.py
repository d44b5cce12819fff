"""What a server is started with, and what it may not be started with.

``embstore serve`` makes one from its options, the processes behind it get it through a pipe: tokens are never part of a
command line, where all users of a machine could read them.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from embstore.config import parse
from embstore.errors import ConfigError, nearest
from embstore.serving.access import Access
from embstore.serving.protocol import Limits

LEVELS = ("debug", "info", "warning", "error")
METRICS = ("cosine", "dot", "l2")  # embstore.serving.scores.Metric's, without numba
TOKEN, ADMIN_TOKEN = "EMBSTORE_TOKEN", "EMBSTORE_ADMIN_TOKEN"
MAX_NOTICE = 300.0
_MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files.

    Args:
        cert: the server's certificate, and those between it and its authority.
        key: its private key, without a password.
        client_ca: authorities; who asks needs a certificate of one of them.
    """

    cert: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """A server.

    Args:
        store: a folder, or a URI.
        alias: what requests mean that name no version; a tag or version id stays what it is.
        name: of the model; the store's last folder when empty.
        host: an address or a name of this machine; any but its loopback needs ``tls`` and ``read_tokens``.
        http_port: 0: any that is free; ``None``: no HTTP.
        grpc_port: likewise.
        workers: processes that answer; they share the table's memory.
        tls: of both ports.
        read_tokens: who may look up; all when empty.
        admin_tokens: who may promote, roll back and load; nobody when empty.
        limits: of one request.
        poll_seconds: between two looks at the alias.
        notice_seconds: at the end, from "not ready" until nothing new is accepted: what balancers need to notice.
        scores: whether the network is built, to score with.
        search: features whose values are searched for neighbours; ``all``: those in the version's vocabulary.
        metric: what makes a neighbour near, one of ``METRICS``.
        log_level: one of ``LEVELS``.
    """

    store: str
    alias: str = "production"
    name: str = ""
    host: str = "127.0.0.1"
    http_port: int | None = 8000
    grpc_port: int | None = 8001
    workers: int = 1
    tls: TlsFiles | None = None
    read_tokens: tuple[str, ...] = field(default=(), repr=False)
    admin_tokens: tuple[str, ...] = field(default=(), repr=False)
    limits: Limits = field(default_factory=Limits)
    poll_seconds: float = 1.0
    notice_seconds: float = 0.5
    scores: bool = True
    search: tuple[str, ...] = ()
    metric: str = "cosine"
    log_level: str = "info"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or _last_folder(self.store))
        if not self.name.isprintable() or "/" in self.name or self.name in ("", ".", ".."):
            do = "give it a name: --name shop"
            raise ConfigError("name of the model", expected="text without slashes", found=repr(self.name), do=do)
        self._check_numbers()
        if self.log_level not in LEVELS:
            raise ConfigError(f"log level {self.log_level!r}", do=nearest(self.log_level, LEVELS))
        if self.metric not in METRICS:
            raise ConfigError(f"metric {self.metric!r}", do=nearest(self.metric, METRICS))
        Access(self.read_tokens, self.admin_tokens)
        if not is_loopback(self.host):
            self._check_open()

    def _check_numbers(self) -> None:
        for name, port in (("http", self.http_port), ("grpc", self.grpc_port)):
            if port is not None and not 0 <= port <= 65_535:
                raise ConfigError(f"{name} port", expected="0 to 65,535, or off", found=f"{port:,}")
        if self.http_port is None and self.grpc_port is None:
            raise ConfigError("ports", expected="one for HTTP or one for gRPC", found="neither")
        if self.http_port and self.http_port == self.grpc_port:
            raise ConfigError("ports", expected="two", found=f"{self.http_port} for HTTP and for gRPC")
        if not 1 <= self.workers <= _MAX_WORKERS:
            raise ConfigError("workers", expected=f"1 to {_MAX_WORKERS}", found=f"{self.workers:,}")
        if not 0 < self.poll_seconds < float("inf"):
            raise ConfigError("poll", expected="seconds, more than 0", found=str(self.poll_seconds))
        if not 0 <= self.notice_seconds <= MAX_NOTICE:
            raise ConfigError("notice", expected=f"0 to {MAX_NOTICE:g} seconds", found=str(self.notice_seconds))
        for of in fields(self.limits):
            if (value := getattr(self.limits, of.name)) < 1:
                raise ConfigError(f"limit of {of.name}", expected="1 or more", found=f"{value:,}")

    def _check_open(self) -> None:
        """What others can reach takes TLS and a token."""
        lacks = [
            *(["TLS"] if self.tls is None else []),
            *(["token to read"] if not self.read_tokens else []),
        ]
        if lacks:
            do = "--tls-cert, --tls-key and --token-file; or --host 127.0.0.1, which only this machine reaches"
            raise ConfigError(
                f"host {self.host}", expected="TLS and a token to read", found=f"no {', no '.join(lacks)}", do=do
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, tokens and all."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServeSettings:
        """From what ``to_dict`` gave."""
        return parse(cls, values, where="settings")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; of names ``localhost`` alone, as others may come to mean others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def tokens_of(path: str | None, variable: str, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The tokens of a file, one a line (``#`` begins a remark), and that of an environment variable.

    Raises:
        ConfigError: a file that can't be read, or has none: it was not meant to let all pass.
    """
    tokens = [environment[variable]] if environment.get(variable) else []
    if path is not None:
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding="ascii").splitlines()]
        except (OSError, ValueError) as error:
            found = error.strerror if isinstance(error, OSError) else "other bytes"
            raise ConfigError(f"token file {path}", expected="ASCII text, a token a line", found=str(found)) from error
        in_file = [line for line in lines if line and not line.startswith("#")]
        if not in_file:
            raise ConfigError(f"token file {path}", expected="a token a line", found="none")
        tokens += in_file
    return tuple(tokens)


def readable_by_all(path: str) -> bool:
    """Whether every user of the machine may read a file."""
    return bool(os.stat(path).st_mode & stat.S_IROTH)


def _last_folder(store: str) -> str:
    if "://" in store:
        return store.rstrip("/").rpartition("/")[2]
    return Path(store).resolve().name

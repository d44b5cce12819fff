"""Asks a server over HTTP, for services that have neither torch nor embstore's other packages: numpy is all it needs.

    client = Client("http://127.0.0.1:8000")
    client.lookup("user", ["ann", "bob"]).vectors         float32 [2, width]

Values are as ``Reader`` takes them: lists (or numpy arrays) of text, bytes or integers, ``None`` where missing, and
lists of them for list features. Numbers travel as raw bytes: what comes is what ``Reader`` gives, bit for bit.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import chain
from ssl import SSLContext
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, RequestError, UnavailableError
from embstore.serving.outcomes import error_of

try:
    import orjson

    _dumps: Callable[[Any], bytes] = orjson.dumps
    _loads: Callable[[bytes], Any] = orjson.loads
except ImportError:

    def _dumps(value: Any) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()

    _loads = json.loads

Records = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Any]]

_NUMPY: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_LENGTHS = [length.to_bytes(4, "little") for length in range(1024)]


class Found(NamedTuple):
    """What a lookup of one feature gives.

    Args:
        vectors: float32 ``[B, width]``.
        status: uint8, for each value: 0 known, 1 missing, 2 pruned, 3 unseen.
        version: the immutable version they are from.
    """

    vectors: NDArray[np.float32]
    status: NDArray[np.uint8]
    version: str


class Embedded(NamedTuple):
    """The vectors of records, as the model reads them.

    Args:
        vectors: float32 ``[B, width]``.
        version: the immutable version they are from.
    """

    vectors: NDArray[np.float32]
    version: str


class Scored(NamedTuple):
    """The model's probabilities of a positive label.

    Args:
        scores: float32 ``[B]``.
        version: the immutable version they are from.
    """

    scores: NDArray[np.float32]
    version: str


class Client:
    """Asks one server; any number of threads may, each has a connection of its own.

    Args:
        url: ``http://`` or ``https://``, host and port.
        token: a bearer token, where the server asks for one.
        timeout: seconds without an answer.
        context: of TLS, for certificates that the machine doesn't know.

    Raises:
        ConfigError: a URL of another kind.

    All methods raise ``UnavailableError`` where no server answers, and what the server's answer tells of:
    ``RequestError``, ``LimitError``, ``VersionNotFoundError``, ``AccessError``, ``DeadlineError``, ...
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 30.0, context: SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError("url", expected="http://HOST:PORT or https://HOST:PORT", found=repr(url))
        self.url, self._timeout = url, timeout
        self._is_tls, self._context, self._address = parts.scheme == "https", context, (parts.hostname, parts.port)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._own = threading.local()
        self._about: dict[str, Any] | None = None
        self._kinds: dict[str, str] = {}

    def lookup(self, feature: str, values: Iterable[Any], version: str = "") -> Found:
        """The vectors and statuses of raw values of one feature.

        Args:
            values: as the log's column holds them; of a feature with a transform, what the transform gives.
            version: an alias, tag or version id; the server's own alias when empty.
        """
        columns = {feature: values}
        outputs, found = self._infer(columns, (f"{feature}.embedding", f"{feature}.status"), version)
        return Found(outputs[0], outputs[1], found)

    def embed(self, records: Records, version: str = "") -> Embedded:
        """The vectors of records, of all features.

        Args:
            records: columns by name, or rows.
        """
        outputs, found = self._infer(self._columns(records, dense=False), ("embedding",), version)
        return Embedded(outputs[0], found)

    def score(self, records: Records, version: str = "") -> Scored:
        """The model's probability of a positive label for each record.

        Args:
            records: as for ``embed``, with the model's dense columns, too.
        """
        outputs, found = self._infer(self._columns(records, dense=True), ("score",), version)
        return Scored(outputs[0], found)

    def features(self) -> dict[str, Any]:
        """What the server's model takes: ``{"name", "version", "features", "dense", "scores"}``."""
        about: dict[str, Any] = _loads(self._ask("GET", "/api/features", b"", {})[1])
        kinds = {feature["name"]: feature["datatype"] for feature in about["features"]}
        self._about, self._kinds = about, {**kinds, **dict.fromkeys(about["dense"], "FP64")}
        return about

    def close(self) -> None:
        """Close this thread's connection; it opens again when asked."""
        connection: _Connection | None = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()

    def _columns(self, records: Records, dense: bool) -> dict[str, Iterable[Any]]:
        about = self._about or self.features()
        names = [feature["name"] for feature in about["features"]] + (about["dense"] if dense else [])
        if isinstance(records, Mapping):
            return {name: records[name] for name in names if name in records}  # the server says what is absent
        return {name: [row.get(name) for row in records] for name in names}

    def _infer(
        self, columns: Mapping[str, Iterable[Any]], outputs: Sequence[str], version: str
    ) -> tuple[list[NDArray[Any]], str]:
        if not self._kinds.keys() >= columns.keys():
            self.features()  # of a model that was swapped, perhaps
        parts: list[bytes] = []
        inputs = [
            entry
            for name, values in columns.items()
            for entry in _tensors(name, values, self._kinds.get(name, "BYTES"), parts)
        ]
        header = _dumps(
            {"inputs": inputs, "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs]}
        )
        assert self._about is not None
        path = f"/v2/models/{quote(self._about['name'], safe='')}"
        path += f"/versions/{quote(version, safe='')}/infer" if version else "/infer"
        headers = {"Inference-Header-Content-Length": str(len(header))}
        response, body = self._ask("POST", path, b"".join((header, *parts)), headers)
        length = int(response.headers["Inference-Header-Content-Length"])
        answer, at, found = _loads(body[:length]), length, []
        for entry in answer["outputs"]:
            size = entry["parameters"]["binary_data_size"]
            kind = _NUMPY[entry["datatype"]]
            found.append(np.frombuffer(body, kind, size // kind.itemsize, at).reshape(entry["shape"]))
            at += size
        return found, answer["model_version"]

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[HTTPResponse, bytes]:
        """The response to a request that changes nothing, and its body."""
        connection: _Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._connection()
        try:
            try:
                response, data = connection.ask(method, path, body, headers | self._headers)
            except ConnectionError:  # RemoteDisconnected is one
                if not connection.is_reused:
                    raise
                connection.close()
                response, data = connection.ask(method, path, body, headers | self._headers)
        except (OSError, HTTPException) as error:
            connection.close()
            found = str(error) or type(error).__name__
            raise UnavailableError(f"server {self.url}", expected="an answer", found=found) from error
        if response.status != 200:
            raise _error(response.status, data)
        return response, data

    def _connection(self) -> _Connection:
        host, port = self._address
        if self._is_tls:
            return _TlsConnection(host, port, timeout=self._timeout, context=self._context)
        return _Connection(host, port, timeout=self._timeout)


class _Connection(HTTPConnection):
    """Sends a request's head and body together: a server is woken once."""

    is_reused = False  # the last request's connection was open before it
    _held: list[bytes] | None = None

    def ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[HTTPResponse, bytes]:
        """The response to a request, and its body."""
        self.is_reused = self.sock is not None
        self._held = []
        try:
            self.request(method, path, body, headers)
        finally:
            held, self._held = self._held, None
        self.send(b"".join(held))
        response = self.getresponse()
        return response, response.read()

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)


class _TlsConnection(_Connection, HTTPSConnection):
    """Likewise, encrypted."""


def _tensors(name: str, values: Iterable[Any], kind: str, parts: list[bytes]) -> list[dict[str, Any]]:
    """The inputs of a column; their bytes are added to ``parts``."""
    inputs = []

    def add(suffix: str, datatype: str, count: int, data: bytes) -> None:
        parts.append(data)
        of = {"name": name + suffix, "datatype": datatype, "shape": [count]}
        inputs.append({**of, "parameters": {"binary_data_size": len(data)}})

    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iubf":
        add("", *_numbers(name, values, kind))
        return inputs
    values = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if any(isinstance(value, list | tuple | np.ndarray) for value in values):
        lengths = [-1 if value is None else len(value) for value in values]
        add(".lengths", "INT64", len(lengths), np.array(lengths, dtype="<i8").tobytes())
        values = list(chain.from_iterable(value for value in values if value is not None))
    if None in values and not kind.startswith("FP"):
        add(".missing", "BOOL", len(values), bytes(value is None for value in values))
        values = [("" if kind == "BYTES" else 0) if value is None else value for value in values]
    if kind != "BYTES":
        kind_of_none = np.array([float("nan") if value is None else value for value in values] or [0])[: len(values)]
        add("", *_numbers(name, kind_of_none, kind))
        return inputs
    try:
        texts = [value.encode() if type(value) is str else bytes(memoryview(value)) for value in values]
    except TypeError as error:
        raise RequestError(f"values of {name!r}", expected="text or bytes", found=str(error)) from error
    add("", "BYTES", len(texts), b"".join([part for text in texts for part in (_length(len(text)), text)]))
    return inputs


def _numbers(name: str, values: NDArray[Any], kind: str) -> tuple[str, int, bytes]:
    """Datatype, count and bytes of a tensor of numbers."""
    if kind == "BYTES" or values.dtype.kind not in ("iub" if kind == "INT64" else "iubf"):
        expected = {"BYTES": "text or bytes", "INT64": "integers"}.get(kind, "numbers")
        raise RequestError(f"values of {name!r}", expected=expected, found=str(values.dtype))
    as_kind = np.dtype("<i8") if kind == "INT64" else np.dtype("<f8")
    return kind, len(values), values.astype(as_kind).tobytes()


def _length(length: int) -> bytes:
    return _LENGTHS[length] if length < len(_LENGTHS) else length.to_bytes(4, "little")


def _error(status: int, body: bytes) -> Exception:
    try:
        message = str(_loads(body)["error"])
    except (ValueError, TypeError, KeyError):
        message = f"status {status}: {body[:200].decode('latin-1')}"
    return error_of(status, message)

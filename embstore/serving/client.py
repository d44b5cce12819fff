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
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import chain
from ssl import SSLContext
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, RequestError, UnavailableError
from embstore.serving.outcomes import error_of

try:
    import orjson

    _dumps: Callable[[Any], bytes] = orjson.dumps
    _loads: Callable[[bytes | bytearray], Any] = orjson.loads
except ImportError:

    def _dumps(value: Any) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()

    _loads = json.loads

Records = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Any]]

_NUMPY: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_RECEIVED_BYTES = 131_072
_LENGTHS = [length.to_bytes(4, "little") for length in range(1024)]


class Found(NamedTuple):
    """What a lookup of one feature gives.

    Args:
        vectors: float32 ``[B, width]``.
        status: uint8, for each value: 0 known, 1 missing, 2 pruned, 3 unseen; ``None`` where it wasn't asked for.
        version: the immutable version they are from.
    """

    vectors: NDArray[np.float32]
    status: NDArray[np.uint8] | None
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
        ConfigError: a URL or a token of another kind.

    All methods raise ``UnavailableError`` where no server answers, and what the server's answer tells of:
    ``RequestError``, ``LimitError``, ``VersionNotFoundError``, ``AccessError``, ``DeadlineError``, ...
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 30.0, context: SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or not url.isascii():
            raise ConfigError("url", expected="http://HOST:PORT or https://HOST:PORT", found=repr(url))
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError("token", expected="printable ASCII characters", found="others")
        self.url, self._timeout = url, timeout
        self._is_tls, self._context, self._address = parts.scheme == "https", context, (parts.hostname, parts.port)
        host = parts.netloc.rpartition("@")[2]
        self._head = f"Host: {host}\r\n" + ("" if token is None else f"Authorization: Bearer {token}\r\n")
        self._own = threading.local()
        self._opened: WeakSet[_Connection] = WeakSet()  # of all threads
        self._lock = threading.Lock()  # of that
        self._about: dict[str, Any] | None = None
        self._kinds: dict[str, str] = {}

    def lookup(self, feature: str, values: Iterable[Any], version: str = "", *, status: bool = True) -> Found:
        """The vectors and statuses of raw values of one feature.

        Args:
            values: as the log's column holds them; of a feature with a transform, what the transform gives.
            version: an alias, tag or version id; the server's own alias when empty.
            status: whether statuses are asked for, too.
        """
        wanted = [f"{feature}.embedding", f"{feature}.status"] if status else [f"{feature}.embedding"]
        outputs, found = self._infer({feature: values}, wanted, version)
        return Found(outputs[0], outputs[1] if status else None, found)

    def embed(self, records: Records, version: str = "") -> Embedded:
        """The vectors of records, of all features.

        Args:
            records: columns by name, rows, or an Arrow table.
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
        about: dict[str, Any] = _loads(self._ask("GET", "/api/features")[1])
        kinds = {feature["name"]: feature["datatype"] for feature in about["features"]}
        self._about, self._kinds = about, {**kinds, **dict.fromkeys(about["dense"], "FP64")}
        return about

    def close(self) -> None:
        """Close the connections of all threads, none of which may be asking."""
        with self._lock:
            for connection in self._opened:
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _columns(self, records: Records, dense: bool) -> dict[str, Iterable[Any]]:
        about = self._about or self.features()
        names = [feature["name"] for feature in about["features"]] + (about["dense"] if dense else [])
        if hasattr(records, "to_pydict"):  # an Arrow table
            records = records.to_pydict()
        if isinstance(records, Mapping):
            return {name: records[name] for name in names if name in records}  # the server says what is absent
        given = set().union(*records)
        return {name: [row.get(name) for row in records] for name in names if name in given}

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
        more = f"Inference-Header-Content-Length: {len(header)}\r\n"
        headers, body = self._ask("POST", path, more, b"".join((header, *parts)))
        length = int(headers[b"inference-header-content-length"])
        answer, at, found = _loads(body[:length]), length, []
        for entry in answer["outputs"]:
            size = entry["parameters"]["binary_data_size"]
            kind = _NUMPY[entry["datatype"]]
            found.append(np.frombuffer(body, kind, size // kind.itemsize, at).reshape(entry["shape"]))
            at += size
        return found, answer["model_version"]

    def _ask(self, method: str, path: str, more: str = "", body: bytes = b"") -> tuple[dict[bytes, bytes], bytearray]:
        """The headers and the body of the response to a request that changes nothing."""
        connection: _Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._connection()
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n{more}\r\n"
        whole, was_open = head.encode() + body, connection.sock is not None
        try:
            try:
                status, headers, data = connection.ask(whole)
            except ConnectionError:
                if not was_open:
                    raise
                status, headers, data = connection.ask(whole)
        except (OSError, HTTPException, ValueError, KeyError) as error:
            found = str(error) or type(error).__name__
            raise UnavailableError(f"server {self.url}", expected="an answer", found=found) from error
        if status != 200:
            raise _error(status, data)
        return headers, data

    def _connection(self) -> _Connection:
        host, port = self._address
        connection = (
            _TlsConnection(host, port, timeout=self._timeout, context=self._context)
            if self._is_tls
            else _Connection(host, port, timeout=self._timeout)
        )
        with self._lock:
            self._opened.add(connection)
        return connection


class _Connection(HTTPConnection):
    """Opened by ``http.client``, whose own requests and responses take longer than the server needs to answer."""

    def ask(self, request: bytes) -> tuple[int, dict[bytes, bytes], bytearray]:
        """Status, headers and body of a response; an error closes the connection.

        Raises:
            OSError: ``ConnectionError`` where it was closed.
            ValueError, KeyError: not such a response as the server gives.
        """
        try:
            if self.sock is None:
                self.connect()
            self.sock.sendall(request)
            return self._response()
        except BaseException:  # what is left of a response would be the next one's
            self.close()
            raise

    def _response(self) -> tuple[int, dict[bytes, bytes], bytearray]:
        received = self._received(_RECEIVED_BYTES)
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > _RECEIVED_BYTES:
                raise ValueError("an endless head")
            received += self._received(_RECEIVED_BYTES)
        first, *lines = received[:end].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if not first.startswith(b"HTTP/1."):
            raise ValueError("not HTTP/1.1")
        body = bytearray(int(headers[b"content-length"]))
        view, at = memoryview(body), len(received) - end - 4
        view[:at] = received[end + 4 :]
        while at < len(body):
            count = self.sock.recv_into(view[at:])
            if not count:
                raise ConnectionResetError("the connection was closed in the middle of an answer")
            at += count
        if headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return int(first.split(b" ", 2)[1]), headers, body

    def _received(self, most: int) -> bytes:
        received: bytes = self.sock.recv(most)
        if not received:
            raise ConnectionResetError("the connection was closed")
        return received

    def __del__(self) -> None:  # of a thread that ended
        self.close()


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
    types = set(map(type, values))
    if any(issubclass(of, list | tuple | np.ndarray) for of in types):
        lengths = [-1 if value is None else len(value) for value in values]
        add(".lengths", "INT64", len(lengths), np.array(lengths, dtype="<i8").tobytes())
        values = list(chain.from_iterable(value for value in values if value is not None))
        types = set(map(type, values))
    if type(None) in types and not kind.startswith("FP"):
        add(".missing", "BOOL", len(values), bytes(value is None for value in values))
        values = [("" if kind == "BYTES" else 0) if value is None else value for value in values]
        types = set(map(type, values))
    if kind == "BYTES":
        add("", kind, len(values), _texts(name, values, types))
    else:
        numbers = [float("nan") if value is None else value for value in values]
        add("", *_numbers(name, np.array(numbers) if numbers else np.empty(0, dtype=np.int64), kind))
    return inputs


def _texts(name: str, values: list[Any], types: set[type]) -> bytes:
    """Each value's length and bytes."""
    if not all(issubclass(of, str | bytes) for of in types):
        found = ", ".join(sorted(of.__name__ for of in types))
        raise RequestError(f"values of {name!r}", expected="text or bytes", found=found)
    try:
        if types == {str}:
            texts = list(map(str.encode, values))
        else:
            texts = [value.encode() if isinstance(value, str) else value for value in values]
    except UnicodeEncodeError as error:
        raise RequestError(f"values of {name!r}", expected="text", found=str(error)) from error
    try:
        lengths = list(map(_LENGTHS.__getitem__, map(len, texts)))
    except IndexError:  # a long one
        lengths = [len(text).to_bytes(4, "little") for text in texts]
    return b"".join(chain.from_iterable(zip(lengths, texts, strict=True)))


def _numbers(name: str, values: NDArray[Any], kind: str) -> tuple[str, int, bytes]:
    """Datatype, count and bytes of a tensor of numbers."""
    if kind == "BYTES" or values.dtype.kind not in ("iub" if kind == "INT64" else "iubf"):
        expected = {"BYTES": "text or bytes", "INT64": "integers"}.get(kind, "numbers")
        raise RequestError(f"values of {name!r}", expected=expected, found=str(values.dtype))
    as_kind = np.dtype("<i8") if kind == "INT64" else np.dtype("<f8")
    return kind, len(values), values.astype(as_kind).tobytes()


def _error(status: int, body: bytearray) -> Exception:
    try:
        message = str(_loads(body)["error"])
    except (ValueError, TypeError, KeyError):
        message = f"status {status}: {body[:200].decode('latin-1')}"
    return error_of(status, message)

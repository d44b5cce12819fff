"""The client gives what the reader gives, and the server's errors as its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from running import serving
from shop import FEATURES, RECORDS, bundle

from embstore.errors import (
    AccessError,
    ConfigError,
    LimitError,
    RequestError,
    UnavailableError,
    UnknownCallerError,
    VersionNotFoundError,
)
from embstore.serving.access import Access
from embstore.serving.client import Client
from embstore.serving.protocol import Limits
from embstore.serving.reader import Reader
from embstore.store import Store


@pytest.fixture
def client(http: str) -> Iterator[Client]:
    with Client(f"http://{http}") as of:
        yield of


def test_lookups_are_the_readers(client: Client, shared: tuple[Reader, str]) -> None:
    reader = shared[0]
    for feature in FEATURES:
        for values in (RECORDS[feature.name], RECORDS[feature.name][:1], [None], []):
            expected, found = reader.lookup(feature.name, values), client.lookup(feature.name, values)
            assert found.vectors.tobytes() == expected.vectors_BW.tobytes()
            assert found.vectors.shape == expected.vectors_BW.shape
            assert found.status.tolist() == expected.status_N.tolist()
            assert found.version == reader.version.id


def test_records(client: Client, shared: tuple[Reader, str]) -> None:
    reader, rows = shared[0], [dict(zip(RECORDS, row, strict=True)) for row in zip(*RECORDS.values(), strict=True)]
    for records in (RECORDS, rows, pa.table(RECORDS)):
        assert client.embed(records).vectors.tobytes() == reader.embed(RECORDS).tobytes()
        assert client.score(records).scores.tobytes() == reader.score(RECORDS).tobytes()


def test_records_without_a_feature_are_refused(client: Client) -> None:
    """Whatever form they have: what is absent is not missing."""
    columns = {name: values for name, values in RECORDS.items() if name != "item"}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for records in (columns, rows, pa.table(columns)):
        with pytest.raises(RequestError, match="found no item"):
            client.embed(records)
        with pytest.raises(RequestError, match="found no item"):
            client.score(records)


def test_arrays(client: Client, shared: tuple[Reader, str]) -> None:
    reader = shared[0]
    for feature, values in (
        ("item", np.arange(10)),
        ("item", np.arange(10, dtype=np.uint8)),
        ("item", [np.int32(3), True, 2]),
        ("user", np.array(["ann", "zoë"])),
        ("user", np.array([b"ann", b"\xff"], dtype=object)),
        ("user", [b"ann", "x" * 5000]),
        ("tags", np.array([["a", "b"], ["c", "d"]])),
        ("tags", [("a", None), np.array(["b"])]),
    ):
        plain = (
            values.tolist()
            if isinstance(values, np.ndarray)
            else [getattr(v, "tolist", lambda v=v: v)() for v in values]
        )
        if feature == "user":
            plain = [value.encode() if isinstance(value, str) else value for value in plain]
        expected = reader.lookup(feature, plain if feature != "item" else [int(value) for value in plain])
        assert client.lookup(feature, values).vectors.tobytes() == expected.vectors_BW.tobytes()


@pytest.mark.parametrize(
    ("feature", "values", "said"),
    [
        ("item", ["1"], "expected integers"),
        ("item", [1.5], "expected integers"),
        ("item", np.array([1.5]), "expected integers"),
        ("item", [2**70], "expected integers"),
        ("user", [1], "text or bytes"),
        ("user", np.arange(2), "text or bytes"),
        ("user", [np.int64(2)], "text or bytes"),
        ("user", ["\ud800"], "surrogates not allowed"),
        ("usr", ["ann"], "did you mean 'user'"),
        ("hour", [24], "0 to 23"),
    ],
)
def test_bad_values(client: Client, feature: str, values: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        client.lookup(feature, values)


def test_the_servers_errors(store: Store) -> None:
    second = store.publish(bundle(seed=1)).id
    access = Access(read=["r" * 20])
    with serving(store, access=access, limits=Limits(values=10)) as (_, address):
        client = Client(f"http://{address}", token="r" * 20)
        assert client.lookup("user", ["ann"], version=second).version == second
        with pytest.raises(VersionNotFoundError, match="nightly"):
            client.lookup("user", ["ann"], version="nightly")
        with pytest.raises(LimitError, match="at most 10 values"):
            client.lookup("user", ["ann"] * 11)
        with pytest.raises(RequestError, match="found no age"):
            client.score({name: RECORDS[name][:1] for name in RECORDS if name != "age"})
        with pytest.raises(UnknownCallerError):
            Client(f"http://{address}").lookup("user", ["ann"])
        with pytest.raises(AccessError):
            Client(f"http://{address}", token="x" * 20).features()
    with client, pytest.raises(UnavailableError, match="expected an answer"):
        client.lookup("user", ["ann"])


def test_threads(client: Client, shared: tuple[Reader, str]) -> None:
    expected = shared[0].lookup("user", ["ann", "bob"]).vectors_BW.tobytes()
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: client.lookup("user", ["ann", "bob"]).vectors.tobytes(), range(200))
    assert set(found) == {expected}


def test_a_connection_closed_between_requests_is_opened_again() -> None:
    """Of two requests, each of two connections takes one; the second had been closed when it was sent."""
    body = b'{"name": "shop", "version": "v", "features": [], "dense": [], "scores": false}'
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    taken.append(connection.recv(65_536))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30)
        assert [client.features()["name"] for _ in range(2)] == ["shop", "shop"]
        thread.join()
        client.close()
    assert len(taken) == 2
    with pytest.raises(UnavailableError):
        client.features()


def test_urls() -> None:
    for url in ("127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1/v2"):
        with pytest.raises(ConfigError, match="http://HOST:PORT"):
            Client(url)


def test_it_imports_little() -> None:
    code = "import sys, embstore.serving.client; print([m for m in ('torch', 'pyarrow', 'numba') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

"""What comes over HTTP, to clients that are not ours, is what the reader gives, bit for bit."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest
from running import serving
from shop import DIM, FEATURES, RECORDS, bundle

pytest.importorskip("tritonclient.http")  # imports gevent

from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from embstore.serving import asgi
from embstore.serving.access import Access
from embstore.serving.http import File
from embstore.serving.protocol import Limits
from embstore.serving.reader import Reader
from embstore.serving.server import SMALL_VALUES
from embstore.store import Store

READ, ADMIN = "r" * 20, "a" * 20
TABLE = f"1,004 x {DIM} float32"
TEXTS = ("user", "tags", "country")


@pytest.fixture
def asked(http: str) -> Iterator[triton.InferenceServerClient]:
    """A client of the server."""
    with triton.InferenceServerClient(http) as client:
        yield client


@pytest.fixture(scope="module")
def reader(shared: tuple[Reader, str]) -> Reader:
    """What the server reads."""
    return shared[0]


def tensor(name: str, values: Any, datatype: str, *, binary: bool = True) -> triton.InferInput:
    array = np.array(
        values, dtype=object if datatype == "BYTES" else {"INT64": "i8", "FP64": "f8", "BOOL": "?"}[datatype]
    )
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def inputs(binary: bool = True) -> list[triton.InferInput]:
    """``RECORDS``."""
    out = []
    for feature in FEATURES:
        name, values = feature.name, RECORDS[feature.name]
        if name == "tags":
            lengths = [-1 if row is None else len(row) for row in values]
            out.append(tensor("tags.lengths", lengths, "INT64", binary=binary))
            values = [value for row in values if row for value in row]
        datatype = "BYTES" if name in TEXTS else "INT64"
        filled = [("" if datatype == "BYTES" else 0) if value is None else value for value in values]
        out.append(tensor(name, filled, datatype, binary=binary))
        out.append(tensor(f"{name}.missing", [value is None for value in values], "BOOL", binary=binary))
    for name in ("price", "age"):
        values = [0.5 if value is None else value for value in RECORDS[name]]  # JSON has no NaN
        out.append(tensor(name, values, "FP64", binary=binary))
    return out


def outputs(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


@pytest.mark.parametrize("binary", [True, False])
def test_all_outputs_are_the_readers(asked: triton.InferenceServerClient, reader: Reader, binary: bool) -> None:
    found = asked.infer("shop", inputs(binary), outputs=None if binary else outputs(*_names(), binary=False))
    for feature in FEATURES:
        looked = reader.lookup(feature.name, RECORDS[feature.name])
        assert found.as_numpy(f"{feature.name}.embedding").tobytes() == looked.vectors_BW.tobytes()
        assert found.as_numpy(f"{feature.name}.status").tobytes() == looked.status_N.tobytes()
    records = {**RECORDS, **{name: [0.5 if v is None else v for v in RECORDS[name]] for name in ("price", "age")}}
    whole = asked.infer(
        "shop", inputs(binary), outputs=outputs("embedding", "score", binary=binary), request_id="of mine"
    )
    assert whole.as_numpy("embedding").tobytes() == reader.embed(records).tobytes()
    assert whole.as_numpy("score").tobytes() == reader.score(records).tobytes()
    response = whole.get_response()
    assert (response["id"], response["model_version"]) == ("of mine", reader.version.id)


def _names() -> list[str]:
    return [f"{feature.name}.{what}" for feature in FEATURES for what in ("embedding", "status")]


def test_health_and_metadata(asked: triton.InferenceServerClient, reader: Reader) -> None:
    version = reader.version.id
    assert asked.is_server_live()
    assert asked.is_server_ready()
    assert asked.is_model_ready("shop")
    assert asked.is_model_ready("shop", "production")
    assert not asked.is_model_ready("shop", "nightly")
    assert not asked.is_model_ready("shoe")
    assert asked.get_server_metadata()["name"] == "embstore"
    about = asked.get_model_metadata("shop", version)
    assert about["versions"] == [version]
    assert {"name": "item", "datatype": "INT64", "shape": [-1]} in about["inputs"]
    assert {"name": "user.embedding", "datatype": "FP32", "shape": [-1, 2 * DIM]} in about["outputs"]


def test_versions_by_name(store: Store) -> None:
    first = store.resolve("production")
    second = store.publish(bundle(seed=1)).id
    user = [tensor("user", ["ann"], "BYTES")]
    with serving(store) as (_, address), triton.InferenceServerClient(address) as client:
        for ref, version in ((second, second), (second[:-1], second), ("production", first), ("", first)):
            assert client.infer("shop", user, model_version=ref).get_response()["model_version"] == version
        with pytest.raises(InferenceServerException, match="no version") as error:
            client.infer("shop", user, model_version="nightly")
    assert error.value.status() == "404"
    assert str(store.root) not in error.value.message()


def test_a_swap_is_seen(store: Store) -> None:
    user = [tensor("user", ["ann"], "BYTES")]
    with serving(store) as (_, address), triton.InferenceServerClient(address) as client:
        second = store.publish(bundle(seed=1))
        store.promote(second.id)
        until = monotonic() + 60
        while (found := client.infer("shop", user)).get_response()["model_version"] != second.id:
            assert monotonic() < until
    assert found.as_numpy("user.embedding").tobytes() == second.lookup("user", ["ann"]).numpy().tobytes()


def test_large_requests(asked: triton.InferenceServerClient, reader: Reader) -> None:
    values = [f"user {n}" for n in range(10 * SMALL_VALUES)]
    expected = reader.lookup("user", values).vectors_BW.tobytes()
    for binary in (True, False):
        wanted = outputs("user.embedding", binary=binary)
        found = asked.infer("shop", [tensor("user", values, "BYTES", binary=binary)], outputs=wanted)
        assert found.as_numpy("user.embedding").tobytes() == expected


def ask(
    address: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of a response."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, sent, headers or {})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data and data[:1] in b"{[" else data, dict(response.getheaders())
    finally:
        connection.close()


def infer(address: str, *tensors: dict[str, Any], **more: Any) -> tuple[int, Any, dict[str, str]]:
    return ask(address, "POST", "/v2/models/shop/infer", {"inputs": list(tensors), **more})


def of(name: str, datatype: str, shape: list[Any], data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def test_json(http: str, reader: Reader) -> None:
    status, found, headers = infer(
        http,
        of("user", "BYTES", [5], RECORDS["user"]),
        of("tags", "BYTES", [2, 2], [["a", "b"], ["c", None]]),
        of("item", "INT64", [2, 1, 1], [[[1]], [[2]]]),
        outputs=[{"name": "user.embedding"}, {"name": "tags.embedding"}, {"name": "item.status"}],
    )
    assert (status, headers["content-type"]) == (200, "application/json")
    user, tags, item = found["outputs"]
    assert (user["datatype"], user["shape"], item["data"]) == ("FP32", [5, 2 * DIM], [0, 0])
    expected = reader.lookup("user", RECORDS["user"]).vectors_BW
    assert np.array(user["data"], dtype=np.float32).tobytes() == expected.tobytes()
    expected = reader.lookup("tags", [["a", "b"], ["c", None]]).vectors_BW
    assert np.array(tags["data"], dtype=np.float32).tobytes() == expected.tobytes()


def test_what_json_has_no_number_for_is_null(store: Store) -> None:
    model = bundle()
    model.table.weight[:, 0] = float("nan")
    model.table.weight[:, 1] = float("-inf")
    store.promote(store.publish(model).id)
    with serving(store) as (_, address):
        _, found, _ = infer(address, of("item", "INT64", [1], [1]), outputs=[{"name": "item.embedding"}])
        assert found["outputs"][0]["data"][:2] == [None, None]
        with triton.InferenceServerClient(address) as client:
            vector = client.infer("shop", [tensor("item", [1], "INT64")]).as_numpy("item.embedding")[0]
        assert np.isnan(vector[0])
        assert vector[1] == -np.inf


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"{", "expected JSON"),
        (b"[]", "a JSON object with inputs"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 5000, "expected JSON"),
        ({}, "a tensor for each feature"),
        ({"inputs": {}}, "a list of objects"),
        ({"inputs": [1]}, "a list of objects"),
        ({"inputs": [{}]}, "name, datatype and shape"),
        ({"inputs": [of("usr", "BYTES", [1], ["a"])]}, "did you mean 'user'"),
        ({"inputs": [of("user", "BYTES", [2], ["a"])]}, "2 values for"),
        ({"inputs": [of("user", "BYTES", [-1], ["a"])]}, "0 or more"),
        ({"inputs": [of("user", "BYTES", [True], ["a"])]}, "0 or more"),
        ({"inputs": [of("user", "BYTES", [1e30], ["a"])]}, "0 or more"),
        ({"inputs": [of("user", "BYTES", [1], None)]}, "a list, or binary_data_size; found null"),
        ({"inputs": [of("user", "BYTES", [1], [1])]}, "text or null"),
        ({"inputs": [of("user", "BYTES", [1], [["a", "b"]])]}, "text or null; found list"),
        ({"inputs": [of("tags", "BYTES", [2, 2], [["a", "b"], ["c"]])]}, "NAME.lengths"),
        ({"inputs": [of("item", "INT64", [1], [1.5])]}, "INT64 values"),
        ({"inputs": [of("item", "INT64", [1], [2**70])]}, "INT64 values"),
        ({"inputs": [of("user", "BYTES", [1], ["a"], parameters={"shared_memory_region": "x"})]}, "data in the body"),
        ({"inputs": [of("user", "BYTES", [1], ["a"], parameters={"binary_data_size": 1})]}, "with 0 bytes left"),
        ({"inputs": [of("user", "BYTES", [1], ["a"])], "outputs": [{"name": "user.vector"}]}, "known: embedding"),
        ({"inputs": [of("user", "BYTES", [1], ["a"])], "outputs": [{"name": 7}]}, "output: name"),
        ({"inputs": [of("user", "BYTES", [1], ["\ud800"])]}, "expected JSON"),
        ({"inputs": [of("user", "BYTES", [1], ["a"])], "id": 7}, "id; expected text"),
        ({"inputs": [of("user", "BYTES", [1], ["a"])], "parameters": {"timeout": -1}}, "microseconds"),
        ({"inputs": [of("user", "BYTES", [1], ["a"])], "parameters": []}, "parameters; expected an object"),
    ],
)
def test_bad_requests(http: str, request_: Any, said: str) -> None:
    status, found, headers = ask(http, "POST", "/v2/models/shop/infer", request_)
    assert (status, list(found), headers["content-type"]) == (400, ["error"], "application/json")
    assert said in found["error"]


@pytest.mark.parametrize(
    ("length", "size", "tail", "said"),
    [
        ("x", 5, b"\1\0\0\0a", "expected bytes"),
        ("-1", 5, b"\1\0\0\0a", "expected bytes"),
        ("9" * 17, 5, b"\1\0\0\0a", "no more than the body"),
        ("0", 5, b"\1\0\0\0a", "expected JSON"),
        (None, 6, b"\1\0\0\0a", "with 5 bytes left"),
        (None, -1, b"\1\0\0\0a", "bytes that are there"),
        (None, 4, b"\1\0\0\0a", "4 bytes, as inputs say; found 5"),
        (None, 5, b"\2\0\0\0a", "a length of 2 with 1 bytes left"),
        (None, 5, b"\xff\xff\xff\xffa", "a length of 4,294,967,295"),
    ],
)
def test_bad_binary_data(http: str, length: str | None, size: int, tail: bytes, said: str) -> None:
    user = {"name": "user", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [user]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)) if length is None else length}
    status, found, _ = ask(http, "POST", "/v2/models/shop/infer", head + tail, headers)
    assert status == 400
    assert said in found["error"]


def test_routes(http: str) -> None:
    for method, path, expected in (
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/shoe", 404),
        ("GET", "/v2/models/shop/versions", 404),
        ("GET", "/v2/models/shop/versions//ready", 404),
        ("GET", "/v2/models/shop/versions/production/infer/more", 404),
        ("GET", "/v2/models/shop/infer", 405),
        ("DELETE", "/api/versions", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/models/shop/versions/production", 200),
        ("GET", "/v2/models/sho%70", 200),
        ("GET", "/" + "x" * 10_000, 404),
    ):
        status, found, _ = ask(http, method, path)
        assert (method, path[:60], status) == (method, path[:60], expected)
        assert len(str(found)) < 2000
        assert status == 200 or list(found) == ["error"]
    assert ask(http, "POST", "/v2/health/live")[2]["allow"] == "GET"
    assert ask(http, "HEAD", "/v2/health/live")[:2] == (200, b"")


def test_compressed_bodies_are_refused(http: str) -> None:
    for encoding in ("gzip", "deflate"):
        with triton.InferenceServerClient(http) as client, pytest.raises(InferenceServerException) as error:
            client.infer("shop", [tensor("user", ["ann"], "BYTES")], request_compression_algorithm=encoding)
        assert error.value.status() == "415"


def test_limits(store: Store) -> None:
    with serving(store, limits=Limits(values=100, body_bytes=100_000, output_bytes=10_000)) as (_, address):
        status, found, _ = infer(address, of("item", "INT64", [101], list(range(101))))
        assert (status, "at most 100 values" in found["error"]) == (413, True)
        status, found, _ = infer(address, of("item", "INT64", [10**6, 10**12], []))
        assert (status, "at most 100 values" in found["error"]) == (413, True)
        status, found, _ = infer(address, of("user", "BYTES", [100], ["a"] * 100), outputs=[{"name": "user.embedding"}])
        assert (status, "JSON of about 10,000 bytes" in found["error"]) == (413, True)
        status, found, _ = ask(address, "POST", "/v2/models/shop/infer", b'{"a":[' + b"{}," * 25_000 + b"0]}")
        assert (status, "JSON of at most 200 values" in found["error"]) == (413, True)
        status, found, _ = ask(address, "POST", "/v2/models/shop/infer", b" " * 200_000)
        assert (status, "at most 100,000 bytes" in found["error"]) == (413, True)
        assert said_to(address, chunks=[b" " * 60_000] * 4).startswith(b"HTTP/1.1 413")
        status, found, _ = ask(address, "POST", "/v2/repository/index", b" " * 70_000)
        assert (status, "at most 65,536 bytes" in found["error"]) == (413, True)
        assert infer(address, of("item", "INT64", [2], [1, 2]))[0] == 200


def said_to(address: str, *, chunks: list[bytes]) -> bytes:
    """What is answered to a body in chunks."""
    with socket.create_connection(_pair(address), timeout=30) as connection:
        connection.sendall(
            b"POST /v2/models/shop/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for chunk in chunks:
                connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            connection.sendall(b"0\r\n\r\n")
        except ConnectionError:  # it need not read what it refuses
            pass
        return connection.recv(65_536)


def _pair(address: str) -> tuple[str, int]:
    host, port = address.split(":")
    return host, int(port)


def test_chunked_bodies(http: str) -> None:
    body = json.dumps({"inputs": [of("item", "INT64", [1], [1])]}).encode()
    assert said_to(http, chunks=[body[:10], body[10:]]).startswith(b"HTTP/1.1 200")


def test_clients_that_leave(http: str) -> None:
    head = b"POST /v2/models/shop/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    for sent in (head, head + b"{" * 500, head[:20], b"\0" * 50, b"GET / HTTP/9.9\r\n\r\n"):
        for _ in range(5):
            with socket.create_connection(_pair(http)) as connection:
                connection.sendall(sent)
    assert infer(http, of("item", "INT64", [1], [1]))[0] == 200


def test_heads_are_bounded(http: str) -> None:
    for endless in (b"X-More: " + b"y" * 1000 + b"\r\n", b"y" * 1000):
        with socket.create_connection(_pair(http), timeout=30) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n")
            with pytest.raises(ConnectionError):
                _send_on(connection, endless)
    chunked = (
        b"POST /v2/models/shop/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    )
    with socket.create_connection(_pair(http), timeout=30) as connection:
        connection.sendall(chunked)
        with pytest.raises(ConnectionError):
            _send_on(connection, b"X-More: " + b"y" * 1000 + b"\r\n")
    assert ask(http, "GET", "/v2/health/live")[0] == 200


def _send_on(connection: socket.socket, data: bytes) -> None:
    for _ in range(100_000):
        connection.sendall(data)


def test_a_body_that_does_not_come(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)
    with socket.create_connection(_pair(http), timeout=30) as connection:
        connection.sendall(b"POST /v2/models/shop/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 504")


def test_deadlines(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(store) as (server, address):
        item = of("item", "INT64", [1], [1])
        assert infer(address, item, parameters={"timeout": 30_000_000})[0] == 200
        assert infer(address, item, parameters={"timeout": 0})[0] == 200
        ended = threading.Event()
        monkeypatch.setattr(server.versions, "ready", lambda ref="": None)  # to be loaded, which takes long
        monkeypatch.setattr(server.versions, "get", lambda ref="": ended.wait(30))
        status, found, _ = infer(address, item, parameters={"timeout": 20_000})
        ended.set()
        assert (status, "in time" in found["error"]) == (504, True)


def test_tokens(store: Store) -> None:
    bearer = {token: {"Authorization": f"Bearer {token}"} for token in (READ, ADMIN, "x" * 20)}
    item = {"inputs": [of("item", "INT64", [1], [1])]}
    with serving(store, access=Access(read=[READ], admin=[ADMIN])) as (_, address):
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert ask(address, "GET", path)[0] == 200
        for path in ("/v2", "/v2/models/shop", "/metrics", "/api/versions", "/api/latency"):
            assert ask(address, "GET", path)[0] == 401
            assert ask(address, "GET", path, headers=bearer["x" * 20])[0] == 401
            assert ask(address, "GET", path, headers=bearer[READ])[0] == 200
        status, _, headers = ask(address, "POST", "/v2/models/shop/infer", item)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert ask(address, "POST", "/v2/models/shop/infer", item, bearer[READ])[0] == 200
        for path in ("/api/promote", "/api/rollback", "/v2/repository/models/shop/load"):
            assert ask(address, "POST", path, {}, bearer[READ])[0] == 403
        anywhere = {**bearer[READ], "Host": "shop.example"}
        assert ask(address, "GET", "/v2", headers=anywhere)[0] == 200
    with serving(store) as (_, address):
        assert ask(address, "POST", "/api/rollback", {}, bearer[ADMIN])[0] == 403


def test_what_a_token_may(store: Store) -> None:
    def rights(address: str, token: str = "") -> tuple[int, list[str]]:
        status, found, _ = ask(address, "GET", "/api/access", headers={"Authorization": token} if token else {})
        return status, [name for name, is_so in found.items() if is_so is True]

    with serving(store, access=Access(read=[READ], admin=[ADMIN])) as (_, address):
        assert rights(address) == (200, ["guarded", "administered"])
        assert rights(address, f"Bearer {READ}") == (200, ["reads", "guarded", "administered"])
        assert rights(address, f"Bearer {ADMIN}") == (200, ["reads", "administers", "guarded", "administered"])
        assert rights(address, f"Bearer {'x' * 20}")[0] == rights(address, f"Basic {READ}")[0] == 401
    with serving(store) as (_, address):
        assert rights(address) == (200, ["reads"])
        assert rights(address, f"Bearer {READ}")[0] == 401
        assert ask(address, "GET", "/api/access", headers={"Host": "evil.example"})[0] == 403


def test_a_version_that_is_damaged_is_said_to_be(store: Store) -> None:
    version = store.publish(bundle(seed=1)).id
    next((store.root / "versions" / version).rglob("*.safetensors")).unlink()
    with serving(store) as (_, address):
        whole, damaged = ask(address, "GET", "/api/versions")[1]["versions"]
    assert (whole["damaged"], damaged["id"], damaged["table"]) == (None, version, None)
    assert "found no file" in damaged["damaged"]
    assert str(store.root) not in damaged["damaged"]


def test_without_tokens_only_this_machine_is_answered(http: str) -> None:
    for host, status in (
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.1.2.3", 200),
        ("[::1]:8000", 200),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1:80@evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example", 403),
        ("", 403),
    ):
        assert (host, ask(http, "GET", "/v2", headers={"Host": host})[0]) == (host, status)
    assert ask(http, "GET", "/v2/health/live", headers={"Host": "10.0.0.1"})[0] == 200


def test_verbs(store: Store) -> None:
    first, second = store.resolve("production"), store.publish(bundle(seed=1)).id
    admin = {"Authorization": f"Bearer {ADMIN}"}
    item = {"inputs": [of("item", "INT64", [1], [1])]}
    with serving(store, access=Access(admin=[ADMIN])) as (_, address):
        _, found, _ = ask(address, "GET", "/api/versions")
        assert [(of["id"], of["loaded"]) for of in found["versions"]] == [(first, True), (second, False)]
        assert [(of["delta"], of["damaged"], of["table"]) for of in found["versions"]] == [(None, None, TABLE)] * 2
        _, found, _ = ask(address, "GET", "/api/aliases")
        assert (found["alias"], found["aliases"]["production"]) == ("production", first)
        status, found, _ = ask(address, "POST", "/api/promote", {"ref": second}, admin)
        assert (status, found["id"], "production" in found["aliases"]) == (200, second, True)
        assert ask(address, "POST", "/v2/models/shop/infer", item)[1]["model_version"] == second
        status, found, _ = ask(address, "POST", "/api/rollback", {}, admin)
        assert (status, found["id"]) == (200, first)
        assert ask(address, "POST", "/v2/models/shop/infer", item)[1]["model_version"] == first
        for body, status in (
            ({"ref": "nightly"}, 404),
            ({}, 400),
            ({"rev": second}, 400),
            ([], 400),
            ({"ref": 7}, 400),
        ):
            assert ask(address, "POST", "/api/promote", body, admin)[0] == status
        _, found, _ = ask(address, "GET", "/api/features")
        assert found["features"][2] == {
            "name": "tags",
            "datatype": "BYTES",
            "width": DIM,
            "list": True,
            "searched": False,
            "values": False,
        }
        assert (found["dense"], found["scores"], found["version"]) == (["price", "age"], True, first)
        _, found, _ = ask(address, "GET", "/api/latency")
        assert found["requests"] == 2
        assert 0 < found["seconds"]["p50"] <= found["seconds"]["max"]
        _, text, _ = ask(address, "GET", "/metrics")
        assert b'embstore_request_seconds_count{outcome="ok",protocol="http"} 2.0' in text


def test_repository(store: Store) -> None:
    first, second = store.resolve("production"), store.publish(bundle(seed=1)).id
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with serving(store, access=Access(admin=[ADMIN])) as (_, address), triton.InferenceServerClient(address) as client:
        index = client.get_model_repository_index()
        assert [(of["name"], of["version"], of["state"]) for of in index] == [
            ("shop", first, "READY"),
            ("shop", second, "UNAVAILABLE"),
        ]
        client.load_model("shop", headers=headers)
        status, _, _ = ask(
            address, "POST", "/v2/repository/models/shop/load", {"parameters": {"version": second}}, headers
        )
        assert status == 200
        assert client.is_model_ready("shop", second)
        ready = ask(address, "POST", "/v2/repository/index", {"ready": True})[1]
        assert [of["version"] for of in ready] == [first, second]
        with pytest.raises(InferenceServerException, match="at most"):
            client.load_model("shop", headers=headers, config='{"name": "shop"}')
        with pytest.raises(InferenceServerException, match="stay loaded"):
            client.unload_model("shop", headers=headers)
        with pytest.raises(InferenceServerException, match="Bearer"):
            client.load_model("shop")


def test_files(store: Store) -> None:
    page = {"/": File(b"<p>shop</p>", "text/html; charset=utf-8", [(b"x-page", b"1")])}
    with serving(store, files=page, access=Access(read=[READ])) as (_, address):
        status, found, headers = ask(address, "GET", "/")
        assert (status, found, headers["content-type"]) == (200, b"<p>shop</p>", "text/html; charset=utf-8")
        assert (headers["x-page"], headers["x-content-type-options"]) == ("1", "nosniff")
        assert ask(address, "POST", "/", {})[0] == 405


def test_what_goes_wrong_inside_stays_there(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(store) as (server, address):

        async def fails(*asked: object) -> None:
            raise ValueError("/srv/secret")

        monkeypatch.setattr(server, "infer", fails)
        status, found, _ = infer(address, of("item", "INT64", [1], [1]))
        assert (status, found) == (500, {"error": "the server failed; its log says at what"})
        server.ending = True
        assert ask(address, "GET", "/v2/health/ready")[0] == 400
    assert "/srv/secret" in caplog.text


def test_a_connection_is_kept(http: str) -> None:
    connection = http_client(http)
    body = json.dumps({"inputs": [of("item", "INT64", [1], [1])]})
    ports = set()
    for path in ("/v2/models/shop/infer", "/nowhere", "/v2/models/shop/infer", "/api/promote"):
        connection.request("POST", path, body)
        response = connection.getresponse()
        response.read()
        ports.add(connection.sock.getsockname())
    assert len(ports) == 1
    connection.close()


def http_client(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(address, timeout=30)


def test_mutated_requests(http: str) -> None:
    data = struct.pack("<I", 3) + b"ann" + struct.pack("<I", 3) + b"bob"
    user = {"name": "user", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [user], "outputs": [{"name": "user.embedding"}]}).encode()
    whole, random = head + data, np.random.default_rng(7)
    connection, statuses = http_client(http), set()
    for _ in range(1000):
        mutated = bytearray(whole)
        for at in random.integers(0, len(whole), random.integers(1, 4)):
            mutated[at] = random.integers(0, 256)
        connection.request(
            "POST", "/v2/models/shop/infer", bytes(mutated), {"Inference-Header-Content-Length": str(len(head))}
        )
        response = connection.getresponse()
        found = json.loads(response.read())
        statuses.add(response.status)
        assert response.status in (200, 400, 413)
        assert ("error" in found) == (response.status != 200)
    connection.close()
    assert {200, 400} <= statuses

"""Abuse of a server over HTTP and gRPC; each test names the rule it led to.

The server runs in a process of its own, so that its memory and its death are seen. After each test it answers a good
request with the same bytes as before.
"""

from __future__ import annotations

import gzip
import json
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Thread
from typing import Any

import grpc
import numpy as np
import pytest
from attacked import GOOD, INFER, SECONDS, Caller, Target, good_message, received, target, typed_message
from hypothesis import given
from hypothesis import strategies as st
from mutated_requests import Attack

from embstore.errors import DataError, RequestError
from embstore.serving.messages import SERVICE, message
from embstore.serving.protocol import OutputTensor, Tensor
from embstore.serving.values import byte_tokens
from embstore.tokens import tokenize

MEMORY = 768 << 20  # more than that no attack takes; limits are those of target.py
READ, ADMIN = "r" * 20, "a" * 20
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Shared: what one attack leaves behind, the next one meets."""
    with target(tmp_path_factory.mktemp("attacked")) as of:
        of.check()
        of.began = of.memory()
        yield of


@pytest.fixture
def attacked(server: Target) -> Iterator[Target]:
    """It, which must be as it was afterwards."""
    good, caller = server.check(), Caller(server.grpc)
    answer = caller.call("ModelInfer", good_message().SerializeToString())
    assert answer[0] == CODE.OK
    yield server
    assert server.check() == good
    assert caller.call("ModelInfer", good_message().SerializeToString()) == answer
    caller.channel.close()
    assert server.memory("VmHWM") < server.began + MEMORY
    assert "Traceback" not in server.log.read_text()


@pytest.fixture
def caller(attacked: Target) -> Iterator[Caller]:
    """Of its gRPC methods."""
    of = Caller(attacked.grpc)
    yield of
    of.channel.close()


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_requests(count: int, attacked: Target) -> None:
    """Rule: whatever is asked, there is an answer, and it says what is wrong."""
    good, attack = attacked.check(), Attack(attacked, seed=count)
    for _ in range(10):
        attack.run(count // 10)
        assert attacked.check() == good
    attack.close()
    ends = attack.outcomes.ends
    print(json.dumps({"ends": ends, "slowest": attack.outcomes.slowest, "peak": attacked.memory("VmHWM")}))
    assert attack.outcomes.wrong == []
    assert sum(sum(of.values()) for of in ends.values()) == count
    assert all(len(of) > 1 for of in ends.values())


# Sizes


def infer(attacked: Target, inputs: list[dict[str, Any]], *outputs: str, **more: Any) -> tuple[int, dict[str, Any]]:
    status, body = attacked.ask(body={"inputs": inputs, "outputs": [{"name": name} for name in outputs], **more})
    return status, json.loads(body)


def of(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@pytest.mark.parametrize("rows", [2**62, 10**9, 200_001])
def test_rows_without_values(rows: int, attacked: Target, caller: Caller) -> None:
    """Rule: rows count as values do: [2^62, 0] has none, and yet as many vectors."""
    for name, datatype in (("user", "BYTES"), ("tags", "BYTES"), ("item", "INT64"), ("item.vector", "FP32")):
        wanted = "item.neighbors" if name == "item.vector" else f"{name}.embedding"
        status, found = infer(attacked, [of(name, datatype, [rows, 0], [])], wanted)
        assert (status, "at most 200,000 values" in found["error"]) == (413, True)
        request = message("ModelInferRequest")(model_name="shop", raw_input_contents=[b""])
        request.inputs.add(name=name, datatype=datatype, shape=[rows, 0])
        assert caller.call("ModelInfer", request.SerializeToString())[0] == CODE.RESOURCE_EXHAUSTED


def test_an_output_many_times(attacked: Target, caller: Caller) -> None:
    """Rule: an output is given once; each would have been made anew."""
    rows = [of("item", "INT64", [50_000], list(range(50_000)))]
    for name in ("item.status", "item.embedding", "item.neighbors"):
        status, found = infer(attacked, rows, *[name] * 9000)
        assert (status, "each once" in found["error"]) == (400, True)
    request = good_message()
    for _ in range(9000):
        request.outputs.add(name="item.neighbors")
    assert caller.call("ModelInfer", request.SerializeToString())[0] == CODE.INVALID_ARGUMENT


def test_many_and_long_parts(attacked: Target, caller: Caller) -> None:
    """Rule: what is long or many is cut before it is compared, copied or told of."""
    tensor = of("user", "BYTES", [1], ["a"])
    for inputs in (
        [{**tensor, "name": "n" * 7_000_000}],
        [{**tensor, "datatype": "n" * 7_000_000}],
        [{**tensor, "shape": [1] * 100_000}],
        [{**tensor, "shape": [10**18] * 100_000}],
        [{**tensor, "name": f"n{n}"} for n in range(100_000)],
        [tensor] * 40_000,
        [{}] * 100_000,
    ):
        status, found = infer(attacked, inputs)
        assert status in (400, 413)
        assert len(found["error"]) <= 2000
    assert infer(attacked, [tensor], *(["o" * 7_000_000]))[0] == 400
    assert infer(attacked, [tensor], *(f"o{n}" for n in range(100_000)))[0] in (400, 413)
    assert infer(attacked, [tensor], id="i" * 7_000_000)[0] == 200
    for change in (
        lambda of: setattr(of, "model_name", "m" * 7_000_000),
        lambda of: setattr(of, "model_version", "v" * 7_000_000),
        lambda of: setattr(of.inputs[0], "name", "n" * 7_000_000),
        lambda of: of.inputs[0].shape.extend([1] * 7_000_000),
        lambda of: [of.parameters[f"{n}"].Clear() for n in range(1001)],
        lambda of: [of.inputs[0].parameters[f"{n}"].Clear() for n in range(200_000)],
        lambda of: of.inputs[0].contents.bytes_contents.extend([b""] * 3_000_000),
        lambda of: of.inputs[0].contents.bool_contents.extend([True] * 7_000_000),
        lambda of: [of.inputs.add(name="x") for _ in range(100_000)],
    ):
        request = typed_message()
        change(request)
        code, told = caller.call("ModelInfer", request.SerializeToString())
        assert code in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.RESOURCE_EXHAUSTED)
        assert len(told) <= 2000
    assert caller.call("ModelInfer", b"\x3a\x00" * 4_000_000)[0] == CODE.RESOURCE_EXHAUSTED
    assert caller.call("ModelInfer", bytes(9 << 20))[0] == CODE.RESOURCE_EXHAUSTED


def test_searches_are_bounded(attacked: Target) -> None:
    """Rule: neighbours are bounded by what they cost, and answered beside other requests."""
    rows = [of("item", "INT64", [100_000], [1] * 100_000)]
    assert infer(attacked, rows, "item.neighbors", parameters={"k": 10_000})[0] == 413
    for k in (0, -1, 10_001, 2**62, 1.0, True, "1", None, [1]):
        status, found = infer(attacked, rows, "item.neighbors", parameters={"k": k})
        assert (status, "k of 1 to" in found["error"]) == (400, True)
    for value in (1e300, float("inf")):
        vector = [{**of("item.vector", "FP64", [1, 8], None), "data": None}]
        vector[0] = {key: of for key, of in vector[0].items() if key != "data"}
        data = np.full(8, value).tobytes()
        vector[0]["parameters"] = {"binary_data_size": len(data)}
        head = json.dumps({"inputs": vector, "outputs": [{"name": "item.neighbors"}]}).encode()
        assert attacked.ask(body=head + data, headers={"Inference-Header-Content-Length": str(len(head))})[0] == 400


def test_depth(attacked: Target) -> None:
    """Rule: depth has an end, in JSON and in messages."""
    for deep in (b"[" * 4_000_000, b'{"a":' * 1_000_000, b"[" * 10_000 + b"]" * 10_000):
        assert attacked.ask(body=deep)[0] in (400, 413)
        assert attacked.ask(body=b'{"inputs":[{"name":"user","datatype":"BYTES","shape":[1],"data":' + deep)[0] in (
            400,
            413,
        )


@pytest.mark.parametrize(
    "name", ["__proto__", "constructor", "toString", "hasOwnProperty", "__class__", "{0}", "%s", "${x}"]
)
def test_names_are_only_names(name: str, attacked: Target) -> None:
    """Rule: no name means anything but itself."""
    status, found = infer(attacked, [of(name, "BYTES", [1], ["a"])])
    assert (status, repr(name)[1:-1] in found["error"]) == (400, True)
    status, found = infer(attacked, [of("user", "BYTES", [1], [name])], f"{name}.embedding")
    assert status == 400
    assert infer(attacked, [of("user", "BYTES", [1], [name])])[0] == 200
    assert infer(attacked, [of("user", "BYTES", [1], ["a"])], parameters={name: {name: 1}}, **{name: 1})[0] == 200


def test_compressed_bodies(attacked: Target) -> None:
    """Rule: what is compressed may become any size, and isn't taken."""
    bomb = gzip.compress(bytes(100 << 20))
    for encoding in ("gzip", "deflate", "br", "gzip, gzip", "identity, gzip"):
        assert attacked.ask(body=bomb, headers={"Content-Encoding": encoding})[0] == 415
    assert attacked.ask(body=bomb)[0] == 400
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with grpc.insecure_channel(f"127.0.0.1:{attacked.grpc}", compression=algorithm) as channel:
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(f"/{SERVICE}/ModelInfer")(bytes(100 << 20), timeout=SECONDS)
            assert error.value.code() == CODE.UNIMPLEMENTED


# Heads


def head(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def test_headers_twice(attacked: Target) -> None:
    """Rule: two servers on the way must not read one request in two ways."""
    start = "POST /v2/models/shop/infer HTTP/1.1"
    body = json.dumps(GOOD).encode()
    length = f"Content-Length: {len(body)}"
    assert attacked.said(head(start, "Host: localhost", length, body=body)).startswith(b"HTTP/1.1 200")
    for lines in (
        ("Host: localhost", "Host: evil.example", length),
        ("Host: evil.example", "Host: localhost", length),
        ("Host: localhost", length, length),
        ("Host: localhost", length, "Content-Length: 5"),
        ("Host: localhost", length, "Transfer-Encoding: chunked"),
        ("Host: localhost", "Transfer-Encoding: chunked", length),
        ("Host: localhost", "Transfer-Encoding: identity", length),
        ("Host: localhost", "Transfer-Encoding : chunked"),
        ("Host: localhost", length, "Authorization: Bearer a", "Authorization: Bearer b"),
        ("Host: localhost", length, "Inference-Header-Content-Length: 1", "Inference-Header-Content-Length: 2"),
        ("Host: localhost", f"{length}, {len(body)}"),
    ):
        assert attacked.said(head(start, *lines, body=body)).startswith(b"HTTP/1.1 400")


def test_hosts(attacked: Target) -> None:
    """Rule: where nobody needs a token, a page of another name gets nothing; not even by a name that leads here."""
    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0.0.0.0",
        "[::]",
        "x",
    ):
        for path in ("/", "/page.js", "/v2", "/metrics", "/api/versions"):
            assert attacked.ask("GET", path, headers={"Host": host})[0] == 403
        assert attacked.ask(body=GOOD, headers={"Host": host})[0] == 403
    assert attacked.said(b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")
    answer = attacked.said(head("GET http://evil.example/v2 HTTP/1.1", "Host: localhost"))
    assert not answer.startswith(b"HTTP/1.1 5")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%2f..%2fetc/passwd",
            "/%2e%2e%5c%2e%2e",
            "//etc/passwd",
        ),
        *("/page.js/", "/page.js%00", "/page.js%00.html", "/%00"),
        *("/./page.js", "/x/../page.js", "/page%2Ejs/..", "/%"),
        *(
            "/v2/models/..",
            "/v2/models/%2e%2e/ready",
            "/v2/models/shop%2f..%2f..",
            "/v2/models/shop%00",
            "/v2/models/%73hop%00/infer",
        ),
        *("/v2/models/shop/versions/..%2f..", "/v2/models/shop/versions/%2e%2e", "/v2/models/shop/versions/%00"),
        *("/v2/models/shop/versions/%2fetc%2fpasswd", "/v2/models/shop/versions/*", "/v2/models/shop/versions/~"),
    ],
)
def test_paths(path: str, attacked: Target) -> None:
    """Rule: a path is looked up among names; there is no folder behind it."""
    answer = attacked.said(head(f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"))
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in answer


# Clients that take their time


def test_slow_and_silent_clients(attacked: Target) -> None:
    """Rule: who waits, sends a byte at a time, stops or reads nothing holds up nobody else."""
    wants = b"POST /v2/models/shop/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    body = json.dumps({"inputs": [of("item", "INT64", [60_000], [7] * 60_000)]}).encode()
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(attacked.connect())
        for sent in (b"G", wants, wants + b"100\r\n\r\n", wants + b"9999999\r\n\r\n" + b"[" * 200_000):
            for _ in range(10):
                stack.enter_context(attacked.connect()).sendall(sent)
        unread = [stack.enter_context(attacked.connect()) for _ in range(20)]
        for connection in unread:
            connection.sendall(wants + b"%d\r\n\r\n" % len(body) + body)
        talking = stack.enter_context(attacked.connect())
        for byte in wants:
            talking.sendall(bytes([byte]))
            if byte == ord(" "):
                attacked.check()
        pipelined = stack.enter_context(attacked.connect())
        with suppress(ConnectionError):
            pipelined.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20_000)
        attacked.check()
    attacked.check()


def test_half_closed_connections(attacked: Target) -> None:
    """Rule: who has asked all may end its side; who hasn't is let go."""
    body = json.dumps(GOOD).encode()
    whole = head("POST /v2/models/shop/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", body=body)
    assert attacked.said(whole).startswith(b"HTTP/1.1 200")
    assert attacked.said(whole * 3).count(b"HTTP/1.1 200") == 3
    for cut in (1, 20, 60, len(whole) - 1):
        assert attacked.said(whole[:cut]) == b""


def test_responses_that_nobody_reads(attacked: Target) -> None:
    """Rule: responses that wait for clients have a size together; others are asked to come again."""
    count = 100_000
    data = np.arange(count).tobytes()
    tensor = {"name": "item", "datatype": "INT64", "shape": [count, 1], "parameters": {"binary_data_size": len(data)}}
    parameters = {"binary_data_output": True}
    asked = json.dumps({"inputs": [tensor], "parameters": parameters, "outputs": [{"name": "item.embedding"}]}).encode()
    lines = ("POST /v2/models/shop/infer HTTP/1.1", "Host: localhost")
    lengths = (f"Content-Length: {len(asked) + len(data)}", f"Inference-Header-Content-Length: {len(asked)}")
    whole = head(*lines, *lengths, body=asked + data)  # 3.2 MB are answered; 128 MiB may wait
    with ExitStack() as stack:
        connections = [stack.enter_context(attacked.connect()) for _ in range(120)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(whole)
        statuses = [connection.recv(12) for connection in connections]
        assert {b"HTTP/1.1 200", b"HTTP/1.1 503"} >= set(statuses)
        assert statuses.count(b"HTTP/1.1 200") > 10
        attacked.check()
    attacked.check()


def test_messages_that_do_not_arrive(attacked: Target, caller: Caller) -> None:
    """Rule: few messages are read at a time, and who sends none holds up the others for seconds at most."""

    def never() -> Iterator[bytes]:
        ended.wait(SECONDS)
        yield from ()

    from threading import Event

    ended = Event()
    calls = [caller.channel.stream_unary(f"/{SERVICE}/ModelInfer").future(never()) for _ in range(40)]
    assert caller.call("ModelInfer", good_message().SerializeToString())[0] == CODE.OK
    for call in calls:
        call.cancel()
    ended.set()
    assert caller.call("ModelInfer", good_message().SerializeToString())[0] == CODE.OK


def test_what_is_no_http2(attacked: Target) -> None:
    """Rule: gRPC's port takes HTTP/2, and lets go what isn't."""
    choice = random.Random(0)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\4\0\0\0\0\0"
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        choice.randbytes(10_000),
        preface + choice.randbytes(10_000),
        preface + settings * 1000,
        preface + settings + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(100_000),
        preface + settings + (b"\0\0\4\3\0\0\0\0\1" + bytes(4)) * 1000,
        preface[:10],
    ):
        with socket.create_connection(("127.0.0.1", attacked.grpc), timeout=SECONDS) as connection:
            with suppress(OSError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            received(connection)


def test_many_at_a_time(attacked: Target) -> None:
    """Rule: many large requests at once are refused or wait; memory is bounded for all together."""
    body = json.dumps({"inputs": [of("user", "BYTES", [100_000], ["x" * 60] * 100_000)]}).encode()
    ends: list[int] = []

    def ask() -> None:
        for _ in range(2):
            with suppress(ConnectionError):  # what is refused need not be read
                ends.append(attacked.ask(body=body)[0])

    threads = [Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 in ends
    assert set(ends) <= {200, 503}


# Tokens


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server with tokens."""
    with target(tmp_path_factory.mktemp("guarded"), READ, ADMIN) as of:
        yield of


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


HOSTILE = [
    "",
    " ",
    "x" * 20,
    READ[:-1],
    READ + "x",
    READ + ", " + ADMIN,
    READ.upper(),
    "\xff" * 20,
    "x" * 60_000,
    "null",
]
GUARDED = [
    *(
        ("GET", "/v2"),
        ("GET", "/v2/models/shop"),
        ("GET", "/v2/models/shop/ready"),
        ("POST", INFER),
        ("GET", "/metrics"),
    ),
    *(("POST", "/v2/repository/index"), ("GET", "/api/versions")),
    *(("GET", "/api/aliases"), ("GET", "/api/features")),
    ("GET", "/api/latency"),
]
ADMINISTERED = ["/api/promote", "/api/rollback", "/v2/repository/models/shop/load", "/v2/repository/models/shop/unload"]


def test_who_may_not(guarded: Target) -> None:
    """Rule: a token is one header, ``Authorization: Bearer``, of exactly the server's bytes; nothing else is one."""
    for method, path in (*GUARDED, *(("POST", path) for path in ADMINISTERED)):
        assert guarded.ask(method, path)[0] == 401
        for where in (f"{path}?token={ADMIN}", f"{path}?access_token={ADMIN}&authorization=Bearer%20{ADMIN}"):
            assert guarded.ask(method, where)[0] == 401
        for token in HOSTILE:
            assert guarded.ask(method, path, headers=bearer(token))[0] == 401
        for scheme in ("Basic", "Token", "Bearer:", "BearerX", "", "Bearer\t\t"):
            found = guarded.ask(method, path, headers={"Authorization": f"{scheme} {'x' * 20}"})[0]
            assert found == 401
        for name in ("X-Authorization", "Proxy-Authorization", "Cookie", "Authorization-"):
            assert guarded.ask(method, path, headers={name: f"Bearer {ADMIN}"})[0] in (400, 401)
    for path in ADMINISTERED:
        assert guarded.ask("POST", path, {}, bearer(READ))[0] == 403
        lines = (f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {READ}", f"Authorization: Bearer {ADMIN}")
        assert guarded.said(head(*lines)).startswith(b"HTTP/1.1 400")
    guarded.check(bearer(READ))
    guarded.check(bearer(ADMIN))


def test_who_may_not_over_grpc(guarded: Target) -> None:
    """Rule: the same over gRPC, before any of a message is read."""
    caller, good = Caller(guarded.grpc), good_message().SerializeToString()
    load = b"\x12\x04shop"
    for method, data in (("ModelInfer", good), ("ModelMetadata", b"\x0a\x04shop"), ("RepositoryModelLoad", load)):
        assert caller.call(method, data)[0] == CODE.UNAUTHENTICATED
        for token in ("", "x" * 20, READ[:-1], READ + "x", f"{READ},{ADMIN}", "x" * 5000):
            assert caller.call(method, data, metadata=[("authorization", f"Bearer {token}")])[0] == CODE.UNAUTHENTICATED
        twice = [("authorization", f"Bearer {READ}"), ("authorization", f"Bearer {ADMIN}")]
        assert caller.call(method, data, metadata=twice)[0] == CODE.INVALID_ARGUMENT
        assert caller.call(method, data, metadata=[("x-authorization", f"Bearer {ADMIN}")])[0] == CODE.UNAUTHENTICATED
    assert (
        caller.call("RepositoryModelLoad", load, metadata=[("authorization", f"Bearer {READ}")])[0]
        == CODE.PERMISSION_DENIED
    )
    assert caller.call("ModelInfer", good, metadata=[("authorization", f"Bearer {READ}")])[0] == CODE.OK
    caller.channel.close()


@pytest.mark.parametrize(
    "ref",
    [
        "..",
        "../..",
        "/etc/passwd",
        "a\0b",
        "..\\x",
        "a/b",
        ".",
        "",
        "x" * 50_000,
        "~",
        "*",
        "\u202e",
        "$(id)",
        "latest\n",
    ],
)
def test_hostile_refs(ref: str, guarded: Target) -> None:
    """Rule: even who may administer names versions, never files."""
    before, good = sorted(guarded.log.parent.rglob("*")), guarded.check(bearer(READ))
    for path, body in (
        ("/api/promote", {"ref": ref}),
        ("/api/promote", {"ref": "latest", "alias": ref}),
        ("/api/rollback", {"alias": ref}),
        ("/v2/repository/models/shop/load", {"parameters": {"version": ref or ".."}}),
    ):
        status, told = guarded.ask("POST", path, body, bearer(ADMIN))
        assert status in (400, 404, 503), told
        assert str(guarded.log.parent).encode() not in told
    assert guarded.check(bearer(READ)) == good
    assert sorted(guarded.log.parent.rglob("*")) == before


def test_verbs_take_no_other_body(guarded: Target) -> None:
    """Rule: a verb takes its own keys, of its own types."""
    for path in ADMINISTERED[:3]:
        for body in (
            b"{",
            b"[]",
            b"7",
            b'"x"',
            b"\xff",
            b"[" * 60_000,
            b'{"x": 1}',
            b'{"parameters": 7}',
            b"x" * 70_000,
            b'{"ref": {}}',
        ):
            if path == "/v2/repository/models/shop/load" and body == b'{"parameters": 7}':
                continue
            status, told = guarded.ask("POST", path, body, bearer(ADMIN))
            assert status in (400, 413), told
    guarded.check(bearer(READ))


# Laws


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_bytes_tensors_travel_unchanged(values: list[bytes]) -> None:
    """What is encoded has the tokens of what it was."""
    import pyarrow as pa

    data = OutputTensor("x", pa.array(values, pa.binary()), (len(values),)).raw()
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        found.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    assert found == values
    expected = tokenize(pa.array(values, pa.binary()), name="x").values
    assert byte_tokens(Tensor("x", "BYTES", (len(values),), data)).tobytes() == expected.tobytes()


@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_bytes_are_tokens_or_refused(data: bytes, count: int) -> None:
    """And which of the two is what the lengths say."""
    values, at = 0, 0
    while at + 4 <= len(data) and at + 4 + int.from_bytes(data[at : at + 4], "little") <= len(data) and values < count:
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        values += 1
    tensor = Tensor("x", "BYTES", (count,), data)
    if values == count and at == len(data):
        assert len(byte_tokens(tensor)) == count
    else:
        with pytest.raises((RequestError, DataError)):
            byte_tokens(tensor)

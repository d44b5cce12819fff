"""Requests mutated at random, by seed; the answer to each is one that embstore chose, and comes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from socket import SHUT_WR, socket
from time import perf_counter
from typing import Any

import grpc
from attacked import GOOD, INFER, Caller, Target, good_message, raw, received, typed_message
from hostile import (
    DATA,
    DATATYPES,
    HEADERS,
    HUGE,
    JSON_SHAPES,
    LENGTHS,
    LINES,
    METHODS,
    NAMES,
    OUTPUTS,
    PARAMETER_NAMES,
    PARAMETERS,
    SHAPES,
)
from mutated import mutate_bytes, mutate_json

STATUSES = {200, 400, 401, 403, 404, 405, 413, 415, 503, 504}
CODES = {
    *(
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    *(grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED),
}


@dataclass
class Outcomes:
    """What came of requests.

    Args:
        ends: how many of each kind ended how.
        wrong: what no server of ours says.
        slowest: seconds, and of what kind.
    """

    ends: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, kind: str, end: str, seconds: float) -> None:
        """One more."""
        self.ends.setdefault(kind, Counter())[end] += 1
        self.slowest = max(self.slowest, (seconds, kind))


class Attack:
    """Mutated requests to a target."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target, self.choice = target, random.Random(seed)
        self.kept: socket | None = None
        self.caller = Caller(target.grpc)
        self.good = good_message().SerializeToString(deterministic=True)
        self.typed = typed_message().SerializeToString(deterministic=True)
        self.outcomes = Outcomes()
        self.kinds: Sequence[Callable[[], str]] = (
            *(self.json_values, self.json_bytes, self.tensors, self.binary, self.head, self.framing),
            *(self.proto_bytes, self.proto_fields, self.proto_lies, self.other_methods),
        )

    def run(self, count: int) -> None:
        """So many, of each kind as many."""
        for number in range(count):
            kind = self.kinds[number % len(self.kinds)]
            started = perf_counter()
            try:
                end = kind()
            except Exception as error:  # whatever it is, it is told with its number
                end = "wrong"
                self.outcomes.wrong.append(f"{kind.__name__} {number}: {type(error).__name__}: {error!s:.300}")
                self.forget()
            self.outcomes.add(kind.__name__, end, perf_counter() - started)

    def close(self) -> None:
        """Leave."""
        self.forget()
        self.caller.channel.close()

    # HTTP: bodies

    def json_values(self) -> str:
        """JSON with another value, key, or key twice; deep, or long."""
        return self.post(mutate_json(json.dumps(GOOD).encode(), self.choice))

    def json_bytes(self) -> str:
        """JSON with other bytes."""
        return self.post(mutate_bytes(json.dumps(GOOD, ensure_ascii=False).encode(), self.choice))

    def tensors(self) -> str:
        """Tensors, outputs and parameters that lie, in JSON that is whole."""
        return self.post(json.dumps(self.lying(GOOD)).encode())

    def binary(self) -> str:
        """The binary extension: what it says of lengths isn't so, or its bytes aren't."""
        choice, request = self.choice, deepcopy(GOOD)
        parts = []
        for tensor in request["inputs"]:
            data = raw(tensor["datatype"], tensor.pop("data"))
            if choice.random() < 0.15:
                data = mutate_bytes(data, choice)
            size = (
                len(data) if choice.random() < 0.95 else choice.choice([0, -1, 1, len(data) - 1, 2**31, HUGE, "1", 1.0])
            )
            tensor["parameters"] = {"binary_data_size": size}
            parts.append(data)
            if choice.random() < 0.1:
                tensor["shape"] = choice.choice(SHAPES)
        if choice.random() < 0.3:
            request = self.lying(request)
        request.setdefault("parameters", {})
        if isinstance(request["parameters"], dict):
            request["parameters"]["binary_data_output"] = choice.random() < 0.7
        head = json.dumps(request).encode()
        length = str(len(head))
        if choice.random() < 0.1:
            length = choice.choice([*LENGTHS, str(len(head) - 1), str(len(head) + 1)])
        body = head + b"".join(parts)
        if choice.random() < 0.1:
            body = mutate_bytes(body, choice)
        return self.post(body, [b"Inference-Header-Content-Length: " + length.encode()])

    def lying(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request whose parts don't go with one another."""
        choice, out = self.choice, deepcopy(request)
        for _ in range(choice.choice((1, 1, 2, 4))):
            tensor = choice.choice(out["inputs"]) if out["inputs"] else {}
            kind = choice.randrange(10)
            if kind == 0:
                tensor["shape"] = choice.choice(SHAPES + JSON_SHAPES)
            elif kind == 1:
                tensor["datatype"] = choice.choice([*DATATYPES, None, 3])
            elif kind == 2:
                tensor["name"] = choice.choice([*NAMES, None, 3, []])
            elif kind == 3:
                tensor["data"] = choice.choice(DATA)
            elif kind == 4 and out["inputs"]:
                out["inputs"].remove(tensor)
            elif kind == 5:
                data = choice.choice(DATA)
                rows = choice.choice([3, 3, len(data) if isinstance(data, list) else 1])
                name, datatype = choice.choice(NAMES), choice.choice(DATATYPES)
                out["inputs"].append({"name": name, "datatype": datatype, "shape": [rows], "data": data})
            elif kind == 6:
                out["outputs"] = [{"name": choice.choice(OUTPUTS)} for _ in range(choice.choice((0, 1, 2, 5)))]
            elif kind == 7:
                of = choice.choice([out, tensor])
                of["parameters"] = {choice.choice(PARAMETER_NAMES): choice.choice(PARAMETERS)}
            elif kind == 8:
                rows = choice.choice([0, 1, 3, 1000])
                width = choice.choice([0, 1, 8, 16, HUGE])
                data = [choice.choice([0.5, 1e300, 0.0])] * min(rows * width, 16_000)
                vector = {"name": "item.vector", "datatype": "FP32", "shape": [rows, width], "data": data}
                out["inputs"], out["outputs"] = [vector], [{"name": "item.neighbors"}]
            else:
                value = choice.choice([None, [], {}, 7, "x", [None], [[]], [{}]])
                out[choice.choice(["inputs", "outputs", "parameters", "id"])] = value
            if not isinstance(out["inputs"], list) or not all(isinstance(of, dict) for of in out["inputs"]):
                break
        return out

    def post(self, body: bytes, headers: Sequence[bytes] = ()) -> str:
        """What a whole request with such a body ends as; the connection is kept, as long as the server keeps it."""
        if self.kept is None:
            self.kept = self.target.connect()
        lines = [f"POST {INFER} HTTP/1.1".encode(), b"Host: localhost", b"Content-Length: %d" % len(body), *headers]
        with suppress(ConnectionError):  # it need not read what it refuses
            self.kept.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.kept.recv(1 << 20)
            assert part, f"the connection ended: {data[:100]!r}"
            data += part
        head, _, rest = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size, pieces = int(fields[b"content-length"]) - len(rest), [rest]
        while size > 0:
            pieces.append(self.kept.recv(1 << 20))
            assert pieces[-1], "half an answer"
            size -= len(pieces[-1])
        if fields.get(b"connection") == b"close":
            self.forget()
        return checked(head, b"".join(pieces))

    def forget(self) -> None:
        """End the connection that is kept."""
        if self.kept is not None:
            self.kept.close()
        self.kept = None

    # HTTP: heads

    def head(self) -> str:
        """Request lines and headers that are none, or other ones, or twice."""
        choice, body = self.choice, json.dumps(GOOD).encode()
        lines = [choice.choice(LINES), *choice.sample(HEADERS, choice.randrange(4))]
        if choice.random() < 0.7:
            lines.append(b"Host: localhost")
        if choice.random() < 0.7:
            lines.append(b"Content-Length: %d" % len(body))
        ending = choice.choice([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])
        head = ending.join(lines) + 2 * ending
        if choice.random() < 0.3:
            head = mutate_bytes(head, choice)
        return self.sent(head + choice.choice([body, b"", body[: len(body) // 2], body * 2, choice.randbytes(500)]))

    def framing(self) -> str:
        """Chunks and lengths that lie, bodies that end early, requests one after the other."""
        choice, body = self.choice, json.dumps(GOOD).encode()
        start = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode()
        if choice.random() < 0.4:
            length = choice.choice([len(body), len(body) - 1, len(body) + 1, 0, 1, 10**9, 2**64, -1])
            one = start + b"Content-Length: %d\r\n\r\n" % length + body
            return self.sent(one * choice.choice([1, 1, 2, 5, 100]))
        chunks = []
        while body:
            size = choice.choice([1, 7, 100, 10_000])
            chunk, body = body[:size], body[size:]
            said = len(chunk) if choice.random() < 0.97 else choice.choice([0, len(chunk) + 1, 2**31, 2**64 - 1, 2**70])
            extension = b";" + b"x" * choice.choice([1, 10_000]) if choice.random() < 0.02 else b""
            chunks.append(b"%x%b\r\n%b\r\n" % (said, extension, chunk))
        trailer = b"X: y\r\n" * choice.choice([0, 0, 0, 1, 10_000])
        data = start + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"
        return self.sent(mutate_bytes(data, choice) if choice.random() < 0.3 else data)

    def sent(self, data: bytes) -> str:
        """What is answered first to bytes on a connection of their own."""
        with self.target.connect() as connection:
            with suppress(OSError):
                connection.sendall(data)
                connection.shutdown(SHUT_WR)
            answer = received(connection)
        while answer.startswith(b"HTTP/1.1 100"):
            answer = answer.partition(b"\r\n\r\n")[2]
        if not answer:
            return "closed"
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        return checked(head, body[: int(fields[b"content-length"])])

    # gRPC

    def proto_bytes(self) -> str:
        """Messages with other bytes."""
        return self.call("ModelInfer", mutate_bytes(self.choice.choice([self.good, self.typed]), self.choice))

    def proto_fields(self) -> str:
        """Messages with fields twice, in other places, of other wire types, with lengths that lie."""
        choice, fields = self.choice, split(self.choice.choice([self.good, self.typed]))
        for _ in range(choice.choice((1, 1, 2, 5))):
            at = choice.randrange(len(fields))
            tag, size, data = fields[at]
            kind = choice.randrange(6)
            if kind == 0:
                fields[at:at] = fields[at : at + choice.choice((1, 2, 9))] * choice.choice((1, 1, 1, 20_000))
                fields = fields[:30_000]
            elif kind == 1:
                fields[at] = (tag ^ choice.randrange(1, 8), size, data)
            elif kind == 2:
                fields[at] = (tag, choice.choice([0, 1, size + 1, 2**31, 2**32, 2**63, 2**64 - 1]), data)
            elif kind == 3:
                fields[at] = (choice.choice([0, 2, 58, 66, 2**29 << 3 | 2, 2**32 | 2]), size, data)
            elif kind == 4:
                other = choice.choice(fields)[2]
                fields[at] = (tag, len(other), other)
            else:
                changed = mutate_bytes(data, choice)
                fields[at] = (tag, len(changed), changed)
        return self.call("ModelInfer", b"".join(varint(tag) + varint(size) + data for tag, size, data in fields))

    def proto_lies(self) -> str:
        """Messages that are whole, whose parts don't go with one another."""
        choice, of = self.choice, choice_of(self.choice)
        for _ in range(choice.choice((1, 1, 2, 4))):
            kind, tensor = choice.randrange(9), choice.choice(of.inputs) if of.inputs else of.inputs.add()
            if kind == 0:
                del tensor.shape[:]
                tensor.shape.extend(choice.choice(SHAPES))
            elif kind == 1:
                tensor.datatype = choice.choice(DATATYPES)
            elif kind == 2:
                tensor.name = choice.choice(NAMES)
            elif kind == 3 and of.raw_input_contents:
                at = choice.randrange(len(of.raw_input_contents))
                data = of.raw_input_contents[at]
                lie = choice.choice([0, 1, 4, len(data), 65_536, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
                of.raw_input_contents[at] = choice.choice(
                    [mutate_bytes(data, choice), lie + data[4:], b"", data * 999, data[:-1]]
                )
            elif kind == 4 and of.raw_input_contents:
                of.raw_input_contents.pop()
            elif kind == 5:
                tensor.contents.int64_contents.extend([1] * choice.choice((1, 2, 1000)))
            elif kind == 6:
                del of.outputs[:]
                for _ in range(choice.choice((1, 2, 5))):
                    of.outputs.add(name=choice.choice(OUTPUTS))
            elif kind == 7:
                where = choice.choice([of, tensor]).parameters[choice.choice(PARAMETER_NAMES)]
                value = choice.choice([True, -1, 10_000, 2**62, "x", 0.5])
                name = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
                setattr(where, f"{name}_param", value)
            else:
                setattr(
                    of,
                    choice.choice(["model_name", "model_version", "id"]),
                    choice.choice(NAMES).replace("user", "shop"),
                )
        return self.call("ModelInfer", of.SerializeToString(deterministic=True))

    def other_methods(self) -> str:
        """Messages of other methods."""
        data = self.choice.choice([b"\x0a\x04shop", b"\x12\x04shop", b"", b"\x0a\x04shop\x12\x0aproduction", self.good])
        return self.call(self.choice.choice(METHODS), mutate_bytes(data, self.choice))

    def call(self, method: str, data: bytes) -> str:
        """What a message ends as."""
        code, told = self.caller.call(method, data)
        assert code in CODES, f"{code}: {told!r:.300}"
        assert code == grpc.StatusCode.OK or len(told.encode()) <= 2000
        return str(code.name)


def checked(head: bytes, body: bytes) -> str:
    """The status of an answer that embstore chose."""
    status = int(head.split(b" ", 2)[1])
    assert status in STATUSES, f"{head!r:.200} {body!r:.300}"
    if status != 200 and body:
        found = json.loads(body)
        assert list(found) == ["error"], body
        assert len(found["error"]) <= 2000
    return str(status)


def choice_of(choice: random.Random) -> Any:
    """A good message, to be spoilt."""
    return choice.choice([good_message, good_message, typed_message])()


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """Tag, size and bytes of a message's fields, all of which have lengths."""
    out, at = [], 0
    while at < len(data):
        tag, at = number(data, at)
        size, at = number(data, at)
        out.append((tag, size, data[at : at + size]))
        at += size
    return out


def number(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    out = shift = 0
    while True:
        out |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return out, at


def varint(value: int) -> bytes:
    """As protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])

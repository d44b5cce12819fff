"""The protocol over gRPC, asked by tritonclient's stock client."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import random
import threading
from collections.abc import Iterator
from time import monotonic, sleep
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_server import running
from shop import FEATURES, RECORDS, bundle
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

import embstore.serving.grpc as module
from embstore import errors
from embstore.models import build
from embstore.serving.access import Access
from embstore.serving.messages import SERVICE
from embstore.serving.protocol import InferRequest, Limits
from embstore.serving.reader import Reader
from embstore.serving.server import Server
from embstore.serving.versions import Versions
from embstore.store import Store

READ, ADMIN = "read-0123456789abcdef", "admin-0123456789abcdef"
Code = grpc.StatusCode


def server_of(store: Store, **settings: Any) -> Server:
    """A server whose alias is loaded."""
    versions = Versions(store, open_reader=lambda version: Reader(version, build))
    versions.get()
    return Server(name="shop", versions=versions, **settings)


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    of = server_of(store)
    yield of
    of.close()


@pytest.fixture
def address(server: Server) -> Iterator[str]:
    with running(server) as at:
        yield at


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as of:
        yield of


@pytest.fixture
def stub(address: str) -> Iterator[GRPCInferenceServiceStub]:
    """For messages that the client would not make."""
    with grpc.insecure_channel(address) as channel:
        yield GRPCInferenceServiceStub(channel)


def tensor(name: str, values: Any, datatype: str, shape: Any = None) -> triton.InferInput:
    """An input as tritonclient makes it."""
    kind = np.object_ if datatype == "BYTES" else _KINDS[datatype]
    if datatype == "BYTES":
        values = [value.encode() if isinstance(value, str) else value for value in values]
    array = np.array(values, dtype=kind).reshape(shape or (len(values),))
    of = triton.InferInput(name, list(array.shape), datatype)
    of.set_data_from_numpy(array)
    return of


_KINDS: dict[str, Any] = {"INT64": "i8", "INT32": "i4", "BOOL": "?", "FP32": "f4", "FP64": "f8"}


def records() -> list[triton.InferInput]:
    """``RECORDS``, as a client sends them."""
    out = []
    for feature in FEATURES:
        values = RECORDS[feature.name]
        if feature.name == "tags":
            elements = [element for row in values if row for element in row]
            out += [
                tensor("tags", [element or "" for element in elements], "BYTES"),
                tensor("tags.missing", [element is None for element in elements], "BOOL"),
                tensor("tags.lengths", [-1 if row is None else len(row) for row in values], "INT32"),
            ]
            continue
        text = feature.name in ("user", "country")
        filled = [("" if text else 0) if value is None else value for value in values]
        out.append(tensor(feature.name, filled, "BYTES" if text else "INT64"))
        out.append(tensor(f"{feature.name}.missing", [value is None for value in values], "BOOL"))
    for name in ("price", "age"):
        out.append(tensor(name, [float("nan") if value is None else value for value in RECORDS[name]], "FP64"))
    return out


def outputs(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def request(**settings: Any) -> pb.ModelInferRequest:
    """One user's, raw."""
    of = pb.ModelInferRequest(**{"model_name": "shop", "raw_input_contents": [b"\3\0\0\0ann"], **settings})
    of.inputs.add(name="user", datatype="BYTES", shape=[1])
    return of


def refused(call: Any, code: grpc.StatusCode, *said: str) -> str:
    """The message of a call that ends so."""
    with pytest.raises((grpc.RpcError, InferenceServerException)) as caught:
        call()
    error: Any = caught.value
    found, text = (
        (error.code(), error.details()) if isinstance(error, grpc.RpcError) else (error.status(), error.message())
    )
    assert str(found) == str(code), text
    for part in said:
        assert part in text
    return str(text)


def test_grpc_is_the_library() -> None:
    assert module.grpc.__name__ == "grpc"
    assert hasattr(module.grpc, "aio")


def test_all_outputs_are_the_readers(client: triton.InferenceServerClient, reader: Reader) -> None:
    found = client.infer("shop", records(), request_id="7")
    assert (found.get_response().id, found.get_response().model_name) == ("7", "shop")
    assert found.get_response().model_version == reader.version.id
    assert len(found.get_response().outputs) == 2 * len(FEATURES)
    for feature in FEATURES:
        looked = reader.lookup(feature.name, RECORDS[feature.name])
        assert found.as_numpy(f"{feature.name}.embedding").tobytes() == looked.vectors_BW.tobytes()
        assert found.as_numpy(f"{feature.name}.embedding").shape == looked.vectors_BW.shape
        assert found.as_numpy(f"{feature.name}.status").tobytes() == looked.status_N.tobytes()
    found = client.infer("shop", records(), outputs=outputs("score", "embedding", "user.status"))
    assert [of.name for of in found.get_response().outputs] == ["score", "embedding", "user.status"]
    assert found.as_numpy("embedding").tobytes() == reader.embed(RECORDS).tobytes()
    assert found.as_numpy("score").tobytes() == reader.score(RECORDS).tobytes()
    assert not any(of.HasField("contents") for of in found.get_response().outputs)


def test_shapes_of_inputs(client: triton.InferenceServerClient, reader: Reader) -> None:
    rows = client.infer("shop", [tensor("item", [1, -7], "INT64", (2, 1))]).as_numpy("item.embedding")
    assert rows.tobytes() == reader.lookup("item", [1, -7]).vectors_BW.tobytes()
    lists = client.infer("shop", [tensor("tags", list("abcd"), "BYTES", (2, 2))]).as_numpy("tags.embedding")
    assert lists.tobytes() == reader.lookup("tags", [["a", "b"], ["c", "d"]]).vectors_BW.tobytes()
    none = client.infer("shop", [tensor("item", [], "INT64")]).as_numpy("item.embedding")
    assert none.shape == (0, 8)


def test_many_values(client: triton.InferenceServerClient, reader: Reader) -> None:
    items = list(range(10_000))  # more than are answered on the loop
    found = client.infer("shop", [tensor("item", items, "INT64")], outputs=outputs("item.embedding"))
    assert found.as_numpy("item.embedding").tobytes() == reader.lookup("item", items).vectors_BW.tobytes()


def test_typed_contents(stub: GRPCInferenceServiceStub, reader: Reader) -> None:
    of = pb.ModelInferRequest(model_name="shop")
    of.inputs.add(name="user", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"ann", "zoë".encode()])
    of.inputs.add(name="item", datatype="INT64", shape=[2]).contents.int64_contents.extend([1, -(2**62)])
    of.inputs.add(name="tags", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"b"])
    of.inputs.add(name="tags.lengths", datatype="INT32", shape=[2]).contents.int_contents.extend([0, 2])
    of.inputs.add(name="tags.missing", datatype="BOOL", shape=[2]).contents.bool_contents.extend([True, False])
    of.inputs.add(name="country", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"de", b"fr"])
    of.inputs.add(name="hour", datatype="UINT8", shape=[2]).contents.uint_contents.extend([0, 23])
    of.inputs.add(name="price", datatype="FP32", shape=[2]).contents.fp32_contents.extend([0.1, 2])
    of.inputs.add(name="age", datatype="FP64", shape=[2]).contents.fp64_contents.extend([33, 0])
    for name in ("user.embedding", "embedding", "score"):
        of.outputs.add(name=name)
    values = {
        "user": ["ann", "zoë"],
        "item": [1, -(2**62)],
        "tags": [[], [None, "b"]],
        "country": ["de", "fr"],
        "hour": [0, 23],
        "price": [np.float32(0.1), 2.0],
        "age": [33.0, 0.0],
    }
    user, embedding, score = stub.ModelInfer(of).raw_output_contents
    assert user == reader.lookup("user", values["user"]).vectors_BW.tobytes()
    assert embedding == reader.embed(values).tobytes()
    assert score == reader.score(values).tobytes()


def test_versions(client: triton.InferenceServerClient, store: Store, server: Server) -> None:
    first, second = store.resolve("production"), store.publish(bundle(seed=1)).id
    store.tag("next", second)
    other = Reader(store.open(second), build).lookup("user", ["ann"]).vectors_BW.tobytes()
    asked = [tensor("user", ["ann"], "BYTES")]
    assert not client.is_model_ready("shop", second)
    for ref in (second, "next"):
        found = client.infer("shop", asked, model_version=ref)
        assert found.get_response().model_version == second
        assert found.as_numpy("user.embedding").tobytes() == other
    assert client.is_model_ready("shop", second)
    for ref in ("", "production", first):
        assert client.infer("shop", asked, model_version=ref).get_response().model_version == first
    refused(lambda: client.infer("shop", asked, model_version="none"), Code.NOT_FOUND, "'none'")
    server.promote(second)
    assert client.infer("shop", asked).as_numpy("user.embedding").tobytes() == other


def test_metadata_and_health(
    client: triton.InferenceServerClient, address: str, server: Server, reader: Reader
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shop")
    assert client.get_server_metadata().name == "embstore"
    metadata = client.get_model_metadata("shop", as_json=True)
    assert (metadata["name"], metadata["versions"]) == ("shop", [reader.version.id])
    inputs = {of["name"]: of["datatype"] for of in metadata["inputs"]}
    assert inputs == {"user": "BYTES", "item": "INT64", "tags": "BYTES", "country": "BYTES", "hour": "INT64"} | {
        "price": "FP32",
        "age": "FP32",
    }
    assert {"name": "user.embedding", "datatype": "FP32", "shape": ["-1", "16"]} in metadata["outputs"]
    refused(lambda: client.get_model_metadata("shp"), Code.NOT_FOUND, "did you mean 'shop'?")
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(f"/{module.HEALTH}/Check")
        named = b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()
        assert (check(b""), check(named)) == (b"\x08\x01", b"\x08\x01")
        refused(lambda: check(b"\x0a\x01x"), Code.NOT_FOUND)
        server.ending = True
        assert check(b"") == b"\x08\x02"
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert client.infer("shop", records()[:1]).as_numpy("user.status").size  # what still comes is answered


def test_repository(store: Store) -> None:
    server = server_of(store, access=Access(admin=[ADMIN]))
    first, second = store.resolve("production"), store.publish(bundle(seed=1)).id
    third = store.publish(bundle(seed=2)).id
    asked, admin = [tensor("user", ["ann"], "BYTES")], {"authorization": f"Bearer {ADMIN}"}
    with running(server) as address, triton.InferenceServerClient(address) as client:

        def states(**ready: bool) -> dict[str, str]:
            index = pb.RepositoryIndexRequest(**ready)
            return {of.version: of.state for of in client._client_stub.RepositoryIndex(index).models}

        assert {of.name for of in client.get_model_repository_index().models} == {"shop"}
        assert states() == {first: "READY", second: "UNAVAILABLE", third: "UNAVAILABLE"}
        assert states(ready=True) == {first: "READY"}
        store.promote(second)
        assert client.infer("shop", asked).get_response().model_version == first
        refused(lambda: client.load_model("shop"), Code.UNAUTHENTICATED)
        client.load_model("shop", headers=admin)
        assert client.infer("shop", asked).get_response().model_version == second
        refused(lambda: client.load_model("shop", admin, config="{}"), Code.INVALID_ARGUMENT, "at most version")
        refused(lambda: client.load_model("shp", admin), Code.NOT_FOUND, "did you mean")
        refused(lambda: client.unload_model("shop", admin), Code.INVALID_ARGUMENT, "stay loaded")
        named = pb.RepositoryModelLoadRequest(model_name="shop")
        named.parameters["version"].string_param = third
        client._client_stub.RepositoryModelLoad(named, metadata=tuple(admin.items()))
        assert states(ready=True).keys() >= {second, third}
    server.close()


def test_access(store: Store) -> None:
    server = server_of(store, access=Access(read=[READ], admin=[ADMIN]))
    asked = [tensor("user", ["ann"], "BYTES")]
    with running(server) as address, triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for call in (
            lambda headers: client.infer("shop", asked, headers=headers),
            lambda headers: client.get_model_metadata("shop", headers=headers),
            lambda headers: client.get_server_metadata(headers=headers),
            lambda headers: client.get_model_repository_index(headers=headers),
            lambda headers: client.is_model_ready("shop", headers=headers),
        ):
            for headers in (None, {"authorization": "Basic x"}, {"authorization": f"Bearer {READ}x"}):
                refused(lambda call=call, of=headers: call(of), Code.UNAUTHENTICATED)
            for token in (READ, ADMIN):
                assert call({"authorization": f"Bearer {token}"})
        refused(lambda: client.load_model("shop", {"authorization": f"Bearer {READ}"}), Code.PERMISSION_DENIED)
    server.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnknownCallerError("x"), Code.UNAUTHENTICATED),
        (errors.AccessError("x"), Code.PERMISSION_DENIED),
        (errors.LimitError("x"), Code.RESOURCE_EXHAUSTED),
        (errors.DeadlineError("x"), Code.DEADLINE_EXCEEDED),
        (errors.VersionNotFoundError("x"), Code.NOT_FOUND),
        (errors.UnavailableError("x"), Code.UNAVAILABLE),
        (errors.CorruptVersionError("x"), Code.UNAVAILABLE),
        (errors.RequestError("x", expected="ü\n", do="y" * 10_000), Code.INVALID_ARGUMENT),
        (errors.SchemaError("x"), Code.INVALID_ARGUMENT),
        (errors.DataError("x"), Code.INVALID_ARGUMENT),
        (errors.ConfigError("x"), Code.INVALID_ARGUMENT),
        (errors.KernelError("x"), Code.INTERNAL),
        (ZeroDivisionError("secret"), Code.INTERNAL),
    ],
)
def test_outcomes(stub: Any, server: Server, monkeypatch: Any, error: Exception, code: grpc.StatusCode) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(server, "infer", fail)
    said = refused(lambda: stub.ModelInfer(request()), code)
    shown = "the server failed" if isinstance(error, ZeroDivisionError) else str(error)[:1900]
    assert said.startswith(shown)
    assert len(said.encode()) <= 2000


def test_deadline(client: triton.InferenceServerClient, server: Server, monkeypatch: Any) -> None:
    seen = []

    async def slow(of: InferRequest, _: object) -> None:
        seen.append(of.deadline)
        await asyncio.sleep(20)

    asked, answer = [tensor("user", ["ann"], "BYTES")], server.infer
    monkeypatch.setattr(server, "infer", slow)
    refused(lambda: client.infer("shop", asked, client_timeout=0.3), Code.DEADLINE_EXCEEDED)
    assert monotonic() - 10 < seen[0] < monotonic() + 1
    refused(lambda: client.infer("shop", asked, timeout=5_000_000, client_timeout=0.3), Code.DEADLINE_EXCEEDED)
    assert seen[1] < monotonic() + 1  # the earlier of the two
    monkeypatch.setattr(server, "infer", answer)
    refused(lambda: client.infer("shop", asked, timeout=1), Code.DEADLINE_EXCEEDED)  # microseconds
    assert client.infer("shop", asked, client_timeout=30).as_numpy("user.status").tolist() == [0]


def test_limits(store: Store) -> None:
    server = server_of(store, limits=Limits(values=100, output_bytes=6400, body_bytes=100_000))
    with running(server) as address, triton.InferenceServerClient(address) as client:
        assert client.infer("shop", [tensor("item", range(100), "INT64")])
        many = [tensor("item", range(101), "INT64")]
        refused(lambda: client.infer("shop", many), Code.RESOURCE_EXHAUSTED, "at most 100 values")
        wide = [tensor("user", ["a"] * 100, "BYTES"), tensor("item", range(1), "INT64")]
        refused(lambda: client.infer("shop", wide), Code.RESOURCE_EXHAUSTED)
        large = [tensor("item", range(20_000), "INT64")]
        refused(lambda: client.infer("shop", large), Code.RESOURCE_EXHAUSTED, "larger than max")
        for name in ("gzip", "deflate"):  # what is small may become any size
            refused(lambda of=name: client.infer("shop", many, compression_algorithm=of), Code.UNIMPLEMENTED, name)
        with grpc.insecure_channel(address) as channel:
            typed = pb.ModelInferRequest(model_name="shop")
            typed.inputs.add(name="item", datatype="INT64", shape=[101]).contents.int64_contents.extend(range(101))
            call = GRPCInferenceServiceStub(channel).ModelInfer
            refused(lambda: call(typed), Code.RESOURCE_EXHAUSTED, "at most 100 values")
    server.close()


def test_what_protobuf_would_blow_up_is_refused() -> None:
    with pytest.raises(errors.LimitError, match="at most 10,000 fields"):
        module.infer_request(b"\x2a\0" * 20_000, Limits())
    with pytest.raises(errors.LimitError, match="beside raw contents"):
        module.infer_request(request(id="x" * (module.MAX_HEAD_BYTES + 1)).SerializeToString(), Limits())
    raw = bytes(module.MAX_HEAD_BYTES + 1)
    asked = module.infer_request(request(raw_input_contents=[raw]).SerializeToString(), Limits())
    assert asked.inputs[0].data == raw


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda of: of.raw_input_contents.append(b""), "raw_input_contents; expected 1, as there are inputs; found 2"),
        (lambda of: of.inputs.add(name="item", datatype="INT64", shape=[1]), "expected 2, as there are inputs"),
        (lambda of: of.raw_input_contents.pop(), "expected 1 values for [1]; found 0"),
        (lambda of: of.inputs[0].contents.bytes_contents.append(b"ann"), "none beside raw_input_contents"),
        (lambda of: of.inputs[0].shape.__setitem__(0, 2), "2 values, each with its length"),
        (lambda of: of.inputs[0].shape.__setitem__(0, -1), "0 or more"),
        (lambda of: of.inputs[0].shape.append(0), "0 bytes in 0 values; found 7"),
        (lambda of: of.inputs[0].shape.extend([1] * 8), "at most 8 numbers"),
        (lambda of: of.inputs[0].parameters["shared_memory_region"].CopyFrom(pb.InferParameter()), "shared_memory"),
        (lambda of: of.outputs.add(name="score").parameters["classification"].CopyFrom(pb.InferParameter()), "'score'"),
        (lambda of: setattr(of.inputs[0], "datatype", "FP16"), "can't be a feature"),
        (lambda of: of.outputs.add(name="user.embeddin"), "did you mean 'user.embedding'?"),
        (lambda of: of.ClearField("inputs") or of.ClearField("raw_input_contents"), "a tensor for each feature"),
    ],
)
def test_bad_requests(stub: GRPCInferenceServiceStub, change: Any, said: str) -> None:
    asked = request()
    change(asked)
    refused(lambda: stub.ModelInfer(asked), Code.INVALID_ARGUMENT, said)
    assert len(stub.ModelInfer(request()).raw_output_contents) == 2


@pytest.mark.parametrize(
    ("datatype", "field", "values", "said"),
    [
        ("INT64", "int64_contents", [1, 2], "expected 1 values for [1]; found 2"),
        ("INT64", "int_contents", [1], "expected int64_contents; found int_contents"),
        ("INT8", "int_contents", [300], "expected INT8 values"),
        ("FP16", "fp32_contents", [1.0], "or raw_input_contents"),
        ("TEXT", "bytes_contents", [b"x"], "found TEXT"),
    ],
)
def test_bad_typed_contents(stub: Any, datatype: str, field: str, values: list[Any], said: str) -> None:
    asked = pb.ModelInferRequest(model_name="shop")
    getattr(asked.inputs.add(name="item", datatype=datatype, shape=[1]).contents, field).extend(values)
    refused(lambda: stub.ModelInfer(asked), Code.INVALID_ARGUMENT, said)


def test_damaged_messages(address: str) -> None:
    whole = request().SerializeToString()
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for damaged in (b"\xff" * 20, whole[:-1], b"\x3b" + whole, b"\x0a\x02\xff\xff" + whole, b"\x08", b"\x0d\0"):
            refused(lambda of=damaged: infer(of), Code.INVALID_ARGUMENT, "a protobuf ModelInferRequest")
        assert infer(b"\x78\x05" + whole)  # a field of a later protocol is passed over
        metadata = channel.unary_unary(f"/{SERVICE}/ModelMetadata")
        refused(lambda: metadata(b"\xff"), Code.INVALID_ARGUMENT, "a protobuf ModelMetadataRequest")
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        refused(lambda: list(stream(iter([whole]))), Code.UNIMPLEMENTED, "use ModelInfer")
        refused(lambda: channel.unary_unary(f"/{SERVICE}/ModelConfig")(b""), Code.UNIMPLEMENTED)


def test_mutated_messages_are_parsed_or_refused() -> None:
    rng = random.Random(0)
    asked = request(id="1", parameters={"a": pb.InferParameter(int64_param=1)})
    asked.outputs.add(name="user.embedding")
    whole, parsed = asked.SerializeToString(), 0
    for _ in range(3000):
        of = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(of))
            of[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        with contextlib.suppress(errors.RequestError, errors.LimitError):
            module.infer_request(bytes(of), Limits())
            parsed += 1
    assert 0 < parsed < 3000


def test_messages_that_do_not_come(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGE_SECONDS", 0.1)
    ended = threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    with grpc.insecure_channel(address) as channel:
        refused(lambda: channel.stream_unary(f"/{SERVICE}/ModelInfer")(never(), timeout=60), Code.DEADLINE_EXCEEDED)
        ended.set()
        refused(lambda: channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter([]), timeout=60), Code.INVALID_ARGUMENT)


def test_who_waits_to_be_read_hurries_the_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READING", 1)
    monkeypatch.setattr(module, "MESSAGE_SECONDS", 600.0)
    monkeypatch.setattr(module, "HURRIED_SECONDS", 0.1)
    ended = threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    with running(server) as at, grpc.insecure_channel(at) as channel:
        silent = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        calls = [silent.future(never(), timeout=60) for _ in range(3)]
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(3):
            assert stub.ModelInfer(request(), timeout=60).model_name == "shop"
        ended.set()
        for call in calls:
            assert call.exception() is not None


def test_requests_together_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server, ended = server_of(store, limits=Limits(body_bytes=100_000)), threading.Event()
    answer = server.infer

    async def waits(*asked: Any) -> Any:
        while not ended.is_set():
            await asyncio.sleep(0.01)
        return await answer(*asked)

    monkeypatch.setattr(server, "infer", waits)
    with running(server) as at, grpc.insecure_channel(at) as channel:
        stub, large = GRPCInferenceServiceStub(channel), request(id="x" * 90_000)
        calls = [stub.ModelInfer.future(large, timeout=60) for _ in range(6)]  # 400,000 bytes may be held
        while sum(call.done() for call in calls) < 2:
            sleep(0.01)
        assert {call.code() for call in calls if call.done()} == {Code.UNAVAILABLE}
        ended.set()
        assert sum(call.exception() is None for call in calls) == 4
        assert stub.ModelInfer(large, timeout=60).model_name == "shop"


def test_responses_together_are_bounded_until_they_are_sent(store: Store) -> None:
    server = server_of(store, limits=Limits(output_bytes=2 << 20))
    options = [("grpc.max_receive_message_length", -1)]
    with running(server) as at, grpc.insecure_channel(at, options) as channel:
        items = request(raw_input_contents=[bytes(8 * 50_000)])
        items.inputs[0].name, items.inputs[0].datatype, items.inputs[0].shape[0] = "item", "INT64", 50_000
        items.outputs.add(name="item.embedding")
        for _ in range(12):  # 1.6 MB each; 8 MiB may be on their way
            assert GRPCInferenceServiceStub(channel).ModelInfer(items, timeout=60).model_name == "shop"


def test_requests_are_counted(stub: GRPCInferenceServiceStub, server: Server) -> None:
    stub.ModelInfer(request())
    refused(lambda: stub.ModelInfer(request(model_name="shop" * 50_000)), Code.NOT_FOUND, "model 'shopshop")
    text = server.metrics.text().decode()
    assert 'embstore_request_seconds_count{outcome="ok",protocol="grpc"} 1.0' in text
    assert 'embstore_request_seconds_count{outcome="no_such_model",protocol="grpc"} 1.0' in text
    assert "embstore_values_total 1.0" in text


def test_processes_share_a_port_where_asked(server: Server) -> None:
    async def ports() -> tuple[int, int]:
        first, port = module.bind(server, "127.0.0.1:0", reuse_port=True)
        second, same = module.bind(server, f"127.0.0.1:{port}", reuse_port=True)
        with pytest.raises(errors.ConfigError, match="one that is free"):
            module.bind(server, f"127.0.0.1:{port}")
        await first.stop(None)
        await second.stop(None)
        return port, same

    port, same = asyncio.run(ports())
    assert port == same > 0


def test_tls(server: Server) -> None:
    key, certificate = self_signed()
    with running(server, grpc.ssl_server_credentials([(key, certificate)])) as address:
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate)) as channel:
            assert GRPCInferenceServiceStub(channel).ModelInfer(request()).model_name == "shop"
        with grpc.insecure_channel(address) as channel:
            refused(lambda: GRPCInferenceServiceStub(channel).ModelInfer(request()), Code.UNAVAILABLE)


def self_signed() -> tuple[bytes, bytes]:
    """A key and its certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return private, certificate.public_bytes(pem)

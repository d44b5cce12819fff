"""The Open Inference Protocol over gRPC.

    request  ──> raw tensors, where they lie in it     response's head, by protobuf ──┐
             └─> the rest, by protobuf                 arrays' own memory ────────────┴─> joined once

Handlers take and give bytes: protobuf would copy each tensor, and would allocate many times the size of a hostile
message before anybody can look at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from importlib.metadata import version as version_of
from time import monotonic, perf_counter
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from embstore.errors import ConfigError, DeadlineError, LimitError, RequestError, StoreError
from embstore.serving.bodies import deadline_of
from embstore.serving.held import Held
from embstore.serving.messages import SERVICE, message
from embstore.serving.protocol import MAX_DIMS, InferRequest, InferResponse, Limits, Raw, RequestedOutput, Tensor
from embstore.serving.reader import Reader
from embstore.serving.server import Server

HEALTH = "grpc.health.v1.Health"
MAX_FIELDS = 10_000  # of a request: its tensors, their raw contents, outputs, parameters
MAX_PARAMETERS = 1000
MAX_HEAD_BYTES = 16 << 20  # of what protobuf parses, for which it allocates up to 8 times as much
CONCURRENT = 1024  # requests that have begun, of a process
READING = 32  # of them, whose messages are arriving
MESSAGE_SECONDS = 30.0  # for a message to come
HURRIED_SECONDS = 2.0  # likewise, while others wait to be read
LARGE_BYTES = 262_144  # responses that are counted
_HELD_MESSAGES = 4  # of the largest size, that are being answered or read by clients
_PING_MILLISECONDS = 60_000
_DETAILS = 2000  # bytes of a message: clients take 8 KiB of metadata, in which a byte may travel as 3
_RAW_INPUT, _RAW_OUTPUT = 7, 6  # raw_input_contents, raw_output_contents
_BYTES_AHEAD = {0: None, 1: 8, 2: None, 5: 4}  # wire types; None: a varint says
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_REFUSED = ("shared_memory_region", "classification")  # Triton's, of tensors
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse

_InferRequest, _InferResponse = message("ModelInferRequest"), message("ModelInferResponse")
_Handler = Callable[[bytes, Any], Awaitable[bytes]]


async def serve(
    server: Server, address: str, credentials: grpc.ServerCredentials | None = None, *, reuse_port: bool = False
) -> grpc.aio.Server:
    """Listen, and answer until ``stop``.

    Args:
        server: asked; of the running loop.
        address: ``"127.0.0.1:8001"``, ``"[::1]:8001"``, ``"unix:path"``.
        credentials: of ``grpc.ssl_server_credentials``; without, in the clear.
        reuse_port: several processes may listen there, and share its connections.

    Raises:
        ConfigError: an address that can't be listened at.
    """
    started, _ = bind(server, address, credentials, reuse_port=reuse_port)
    await started.start()
    return started


def bind(
    server: Server, address: str, credentials: grpc.ServerCredentials | None = None, *, reuse_port: bool = False
) -> tuple[grpc.aio.Server, int]:
    """``serve`` as far as ``start``; with the port, which for ``"host:0"`` is a free one."""
    options = {
        "grpc.so_reuseport": int(reuse_port),
        "grpc.max_receive_message_length": server.limits.body_bytes,
        "grpc.max_send_message_length": -1,  # service.py limits it before it is there
        "grpc.max_concurrent_streams": CONCURRENT,
        "grpc.keepalive_time_ms": _PING_MILLISECONDS,  # who doesn't read any more is gone
        # A small compressed message may become any size: only identity.
        "grpc.compression_enabled_algorithms_bitset": 1,
    }
    bound = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=CONCURRENT)
    bound.add_generic_rpc_handlers(Servicer(server).handlers())
    try:
        port = bound.add_secure_port(address, credentials) if credentials else bound.add_insecure_port(address)
    except RuntimeError as error:
        do = "choose another port, or stop what listens there"
        raise ConfigError(f"gRPC address {address!r}", expected="one that is free", found=str(error), do=do) from error
    return bound, port


class Servicer:
    """The protocol's methods.

    Args:
        server: asked.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._reading = asyncio.Semaphore(READING)
        self._until: dict[asyncio.Timeout, None] = {}  # of those that are read
        self._waiting = 0
        self._arrived = Held(_HELD_MESSAGES * server.limits.body_bytes)
        self._leaving = Held(_HELD_MESSAGES * server.limits.output_bytes)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """For a gRPC server of asyncio."""
        unary, of = grpc.unary_unary_rpc_method_handler, grpc.method_handlers_generic_handler
        methods = {
            "ServerLive": self._open(self._live),
            "ServerReady": self._open(self._ready),
            "ModelReady": self._guarded(self._model_ready),
            "ServerMetadata": self._guarded(self._server_metadata),
            "ModelMetadata": self._guarded(self._model_metadata),
            "RepositoryIndex": self._guarded(self._index),
            "RepositoryModelLoad": self._guarded(self._load, admin=True),
            "RepositoryModelUnload": self._guarded(self._unload, admin=True),
        }
        handlers = {name: unary(handler) for name, handler in methods.items()}
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._infer)  # that says when to read
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return [of(SERVICE, handlers), of(HEALTH, {"Check": unary(self._health)})]

    async def _infer(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        started = perf_counter()
        try:
            self._check(context)
            data = await self._read(requests)
            started = perf_counter()
            encoded, values = await self._answer(data, context)
        except asyncio.CancelledError:
            late = DeadlineError("request", expected="somebody who waits for it", found="nobody any more")
            self.server.ended("grpc", started, late)
            raise
        except Exception as error:
            return await self._failed(started, error, context)
        self.server.ended("grpc", started, None, values=values)
        return encoded

    async def _read(self, requests: AsyncIterator[bytes]) -> bytes:
        """The one message of a call; a few are read at a time, others wait where they came from.

        Raises:
            DeadlineError: it doesn't come.
            RequestError: there is none.
        """
        try:
            async with asyncio.timeout(MESSAGE_SECONDS) as until:
                if self._reading.locked():
                    self._hurry(self._until)
                self._waiting += 1
                try:
                    await self._reading.acquire()
                finally:
                    self._waiting -= 1
                self._until[until] = None
                try:
                    if self._waiting:
                        self._hurry([until])
                    return await anext(requests)
                finally:
                    del self._until[until]
                    self._reading.release()
        except TimeoutError as error:
            raise DeadlineError("request", expected="a message in time", found="none") from error
        except StopAsyncIteration:
            raise RequestError("request", expected="a message", found="none") from None

    def _hurry(self, those: Iterable[asyncio.Timeout]) -> None:
        """Others wait: a client that sends nothing must not hold them up for long."""
        soon = asyncio.get_running_loop().time() + HURRIED_SECONDS
        for of in those:
            when = of.when()
            if when is not None and when > soon and not of.expired():
                of.reschedule(soon)

    async def _answer(self, data: bytes, context: Any) -> tuple[bytes, int]:
        """A response, and how many values were asked for."""
        self._arrived.check(len(data), "a request")
        self._arrived.held += len(data)
        try:
            request = infer_request(data, self.server.limits, context.time_remaining())
            encoded = await self.server.infer(request, infer_response)
        finally:
            self._arrived.held -= len(data)
        if len(encoded) > LARGE_BYTES:
            self._leaving.check(len(encoded), "a response")
            self._leaving.held += len(encoded)
            context.add_done_callback(lambda _: self._left(len(encoded)))
        return encoded, sum(tensor.count() for tensor in request.inputs)

    def _left(self, size: int) -> None:
        self._leaving.held -= size

    def _guarded(self, answer: Callable[[bytes], Any], *, admin: bool = False) -> _Handler:
        """A handler for those who may, that tells of errors and is counted."""

        async def handle(data: bytes, context: Any) -> bytes:
            started = perf_counter()
            try:
                self._check(context, admin=admin)
                answered: bytes = (await answer(data)).SerializeToString()
                self.server.ended("grpc", started, None)
                return answered
            except Exception as error:
                return await self._failed(started, error, context)

        return handle

    def _open(self, answer: Callable[[], Any]) -> _Handler:
        """A handler for everybody, that can't fail."""

        async def handle(data: bytes, context: Any) -> bytes:
            answered: bytes = answer().SerializeToString()
            return answered

        return handle

    async def _failed(self, started: float, error: Exception, context: Any) -> bytes:
        """End a request by the status that its error means."""
        outcome = self.server.ended("grpc", started, error)
        details = self.server.message(error).encode("utf-8", "replace")
        if len(details) > _DETAILS:
            details = details[: _DETAILS - 3] + b"..."
        await context.abort(grpc.StatusCode[outcome.grpc], details.decode("utf-8", "ignore"))
        raise AssertionError("abort raises")

    def _check(self, context: Any, *, admin: bool = False) -> None:
        """Let a request pass by its metadata."""
        access = self.server.access
        if admin or access.guarded:
            found = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
            if len(found) > 1:
                raise RequestError("authorization", expected="one", found=f"{len(found):,}")
            access.check(found[0] if found else None, admin=admin)

    def _live(self) -> Any:
        return message("ServerLiveResponse")(live=True)

    def _ready(self) -> Any:
        return message("ServerReadyResponse")(ready=self.server.is_ready())

    async def _model_ready(self, data: bytes) -> Any:
        request = parsed("ModelReadyRequest", data)
        self.server.check_model(request.name)
        return message("ModelReadyResponse")(ready=self.server.is_ready(request.version))

    async def _server_metadata(self, data: bytes) -> Any:
        extensions = ["model_repository"]
        return message("ServerMetadataResponse")(name="embstore", version=version_of("embstore"), extensions=extensions)

    async def _model_metadata(self, data: bytes) -> Any:
        request = parsed("ModelMetadataRequest", data)
        self.server.check_model(request.name)
        return message("ModelMetadataResponse")(**self.server.metadata(await self._reader(request.version)))

    async def _reader(self, ref: str) -> Reader:
        versions = self.server.versions
        reader = versions.ready(ref)
        return reader if reader is not None else await self.server.run(lambda: versions.get(ref))

    async def _index(self, data: bytes) -> Any:
        request, server = parsed("RepositoryIndexRequest", data), self.server
        infos = await server.run(server.versions.store.versions)
        loaded, response = set(server.versions.loaded().values()), message("RepositoryIndexResponse")()
        for info in infos:
            if info.id in loaded:
                response.models.add(name=server.name, version=info.id, state="READY")
            elif not request.ready:
                response.models.add(name=server.name, version=info.id, state="UNAVAILABLE", reason="not loaded")
        return response

    async def _load(self, data: bytes) -> Any:
        """See at once what the store's aliases mean now, and load a version where one is named."""
        request = parsed("RepositoryModelLoadRequest", data)
        self.server.check_model(request.model_name)
        if request.parameters.keys() - {"version"}:
            expected, found = "at most version, an alias, tag or id", ", ".join(sorted(request.parameters))
            raise RequestError("load: parameters", expected=expected, found=found)
        ref = request.parameters["version"].string_param if request.parameters else ""
        versions = self.server.versions
        await self.server.run(lambda: versions.get(ref))
        await self.server.run(versions.look)
        why = versions.failures().get(ref or versions.following.alias)
        if why is not None:
            raise StoreError(f"load of {self.server.name!r}", found=why)
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, data: bytes) -> Any:
        do = "promote another version, or load one: what was asked for last stays"
        raise RequestError("unload: versions that aliases mean stay loaded", do=do)

    async def _stream(self, requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ModelStreamInfer; one answer a request: use ModelInfer")

    async def _health(self, data: bytes, context: Any) -> bytes:
        if data not in (b"", b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service; expected none or {SERVICE}")
        return _SERVING if self.server.is_ready() else _NOT_SERVING


def parsed(name: str, data: bytes) -> Any:
    """A message.

    Raises:
        RequestError: bytes that are none.
    """
    try:
        return message(name).FromString(data)
    except DecodeError as error:
        raise _damaged(name, str(error)) from error


def infer_request(data: bytes, limits: Limits, seconds: float | None = None) -> InferRequest:
    """What a ``ModelInferRequest`` asks, its raw tensors lying where they are in ``data``.

    Args:
        limits: what it may.
        seconds: that who asks goes on waiting.

    Raises:
        RequestError: it is none, or its contents don't go with its inputs.
        LimitError: it would take too much to parse.
    """
    deadline = None if seconds is None else monotonic() + seconds
    head, raws = _split(data)
    if len(head) > MAX_HEAD_BYTES:
        expected, do = f"at most {MAX_HEAD_BYTES:,} bytes beside raw contents", "send values as raw_input_contents"
        raise LimitError("request", expected=expected, found=f"{len(head):,}", do=do)
    try:
        request = _InferRequest.FromString(head)
    except DecodeError as error:
        raise _damaged("ModelInferRequest", str(error)) from error
    inputs, parameters = request.inputs, _parameters(request.parameters)
    if "timeout" in parameters:
        asked = deadline_of(parameters["timeout"])
        deadline = asked if deadline is None or (asked is not None and asked < deadline) else deadline
    if raws and len(raws) != len(inputs):
        expected = f"{len(inputs):,}, as there are inputs"
        raise RequestError("raw_input_contents", expected=expected, found=f"{len(raws):,}")
    return InferRequest(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        inputs=[_tensor(tensor, raws[at] if raws else None, limits) for at, tensor in enumerate(inputs)],
        outputs=[RequestedOutput(of.name, _parameters(of.parameters, of.name)) for of in request.outputs],
        parameters=parameters,
        deadline=deadline,
    )


def infer_response(response: InferResponse) -> bytes:
    """A ``ModelInferResponse``, all of its contents raw."""
    head = _InferResponse(model_name=response.model, model_version=response.version, id=response.id)
    parts: list[Raw] = [b""]
    for output in response.outputs:
        raw = output.raw()
        head.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        parts += (_length_delimited(_RAW_OUTPUT, len(raw)), raw)
    parts[0] = head.SerializeToString()
    return b"".join(parts)


def _split(data: bytes) -> tuple[bytes, list[memoryview]]:
    """A message's fields but for the raw contents, and those."""
    view, end = memoryview(data), len(data)
    kept, raws = [], []
    at = since = 0  # since: the first byte that was neither kept nor is raw
    for _ in range(MAX_FIELDS):
        if at >= end:
            break
        start = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind not in _BYTES_AHEAD:
            raise _damaged("ModelInferRequest", f"a field of wire type {kind}")
        size = _BYTES_AHEAD[kind]
        if size is None:
            number, at = _varint(data, at)
            size = number if kind == 2 else 0
        if size > end - at:
            raise _damaged("ModelInferRequest", f"a field of {size:,} bytes with {end - at:,} left")
        at += size
        if tag == _RAW_INPUT << 3 | 2:
            raws.append(view[at - size : at])
            kept.append(view[since:start])
            since = at
    else:
        if at < end:
            raise LimitError("request", expected=f"at most {MAX_FIELDS:,} fields", found="more")
    kept.append(view[since:end])
    return b"".join(kept), raws


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise _damaged("ModelInferRequest", "a number without an end")


def _length_delimited(field: int, size: int) -> bytes:
    """What goes before so many bytes of a field."""
    out = bytearray([field << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def _tensor(tensor: Any, raw: memoryview | None, limits: Limits) -> Tensor:
    if len(tensor.shape) > MAX_DIMS:  # Python's numbers take 40 times as much as protobuf's
        found = f"{len(tensor.shape):,}"
        raise RequestError("input: a shape", expected=f"at most {MAX_DIMS} numbers", found=found)
    out = Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw if raw is not None else b"")
    _parameters(tensor.parameters, tensor.name)
    if raw is not None:
        if tensor.HasField("contents") and tensor.contents.ListFields():
            raise out.wrong("contents", "none beside raw_input_contents", "both")
        return out
    return Tensor(out.name, out.datatype, out.shape, _typed(out, tensor.contents, limits))


def _typed(tensor: Tensor, contents: Any, limits: Limits) -> list[Any]:
    """The values of protobuf's typed fields, of which there may be no more than the shape says."""
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise tensor.wrong("datatype", f"one of {', '.join(_CONTENTS)}, or raw_input_contents", tensor.datatype)
    others = [of.name for of, _ in contents.ListFields() if of.name != field]
    if others:
        raise tensor.wrong("contents", field, ", ".join(others))
    values = getattr(contents, field)
    if len(values) != tensor.count():
        raise tensor.wrong("contents", f"{tensor.count():,} values for {list(tensor.shape)}", f"{len(values):,}")
    if len(values) > limits.values:
        raise LimitError("request", expected=f"at most {limits.values:,} values", found=f"{len(values):,}")
    return list(values)


def _parameters(parameters: Any, tensor: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    if not parameters:
        return out
    if len(parameters) > MAX_PARAMETERS:
        found = f"{len(parameters):,}"
        raise RequestError("parameters", expected=f"at most {MAX_PARAMETERS:,} of a tensor or request", found=found)
    for name, value in parameters.items():
        if tensor and name in _REFUSED:
            raise RequestError(f"tensor {tensor!r}", expected="its contents in the message", found=name)
        choice = value.WhichOneof("parameter_choice")
        out[name] = None if choice is None else getattr(value, choice)
    return out


def _damaged(name: str, found: str) -> RequestError:
    return RequestError("message", expected=f"a protobuf {name}", found=found)

"""The protocol's gRPC methods as Ray Serve's proxy takes them.

    proxy     add_to_server: which methods there are; messages pass as the bytes they came as
    replica   Methods: each method, answered by ``embstore.serving.grpc.Servicer``

The proxy asks the only application there is, or the one that the metadata ``application`` names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

SERVICES = {
    "inference.GRPCInferenceService": (
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    ),
    "grpc.health.v1.Health": ("Check",),
}


def add_to_server(servicer: Any, server: Any) -> None:
    """Add the methods to a proxy, which puts its own handlers in their place and leaves messages as they are."""
    for service, names in SERVICES.items():
        methods = {name: grpc.unary_unary_rpc_method_handler(_unanswered) for name in names}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def _unanswered(request: bytes, context: Any) -> bytes:
    raise NotImplementedError("answered by replicas")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message as it travels, for callers that would have it encoded."""

    data: bytes = b""

    def SerializeToString(self) -> bytes:
        """Its bytes."""
        return self.data


class AbortedError(Exception):
    """A call ended by a status."""


@dataclass(frozen=True, slots=True)
class Context:
    """What ``Servicer`` asks of a call, of Ray Serve's; how long the caller waits isn't known there.

    Args:
        of: ``ray.serve.grpc_util.RayServegRPCContext``.
        at_end: called when the answer has left for the proxy, which holds it from then on.
    """

    of: Any
    at_end: list[Callable[[Any], object]] = field(default_factory=list)

    def invocation_metadata(self) -> Any:
        """The caller's."""
        return self.of.invocation_metadata()

    def time_remaining(self) -> None:
        """Not known: the proxy cancels a call whose caller has left."""

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call something at the end."""
        self.at_end.append(callback)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End it."""
        self.of.set_code(code)
        self.of.set_details(details)
        raise AbortedError


class Methods:
    """The protocol's methods, for a class of Ray Serve.

    ``handlers`` answer them, messages of at most ``body_bytes``.
    """

    handlers: list[grpc.GenericRpcHandler]
    body_bytes: int

    async def _call(self, path: str, request: bytes, context: Any) -> Encoded:
        """Without exceptions: each would be a traceback in two logs."""
        if len(request) > self.body_bytes:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(f"message; expected at most {self.body_bytes:,} bytes; found {len(request):,}")
            return Encoded()
        handler = next(found for of in self.handlers if (found := of.service(_Path(path, None))) is not None)
        call = Context(context)
        try:
            if handler.request_streaming:  # its one message is here
                return Encoded(await handler.stream_unary(_alone(request), call))
            return Encoded(await handler.unary_unary(request, call))
        except AbortedError:
            return Encoded()
        finally:
            for callback in call.at_end:
                callback(context)


@dataclass(frozen=True, slots=True)
class _Path:
    method: str
    invocation_metadata: Any


async def _alone(message: bytes) -> AsyncIterator[bytes]:
    yield message


def _method(path: str) -> Callable[..., Any]:
    async def method(self: Methods, request: bytes, grpc_context: Any) -> Encoded:
        return await self._call(path, request, grpc_context)

    return method


for _service, _names in SERVICES.items():
    for _name in _names:
        setattr(Methods, _name, _method(f"/{_service}/{_name}"))

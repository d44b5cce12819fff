"""The same question to each server: the vectors of 500 values, as one array ``[500, dim]``.

All callers take the values as an application has them, a list of ``str``; all make their request anew each time, hold a
connection that is open, and end with a numpy array. None imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURE, MODEL = "user", "shop"
DIM = 32
Ask = Callable[[Sequence[str]], NDArray[np.float32]]

HTTP, GRPC, TRITON_HTTP, TRITON_GRPC = "embstore HTTP", "embstore gRPC", "tritonclient HTTP", "tritonclient gRPC"
SCORE, VERSIONED = "embstore HTTP score", "embstore HTTP with version"
REDIS, HIREDIS, FEAST = "Redis MGET", "Redis MGET, hiredis", "Feast"

_PRICES = np.linspace(0, 10, 100_000)


def caller(name: str, addresses: dict[str, Any]) -> Callable[[Sequence[str]], Any]:
    """What asks one of the contenders.

    Args:
        addresses: ``"http"`` and ``"grpc"`` of embstore, ``"redis"`` and ``"feast"``: ``host:port`` each.
    """
    return _CALLERS[name](addresses)


def _http(addresses: dict[str, Any]) -> Ask:
    client = _client(addresses)
    return lambda values: client.lookup(FEATURE, values, status=False).vectors


def _versioned(addresses: dict[str, Any]) -> Callable[[Sequence[str]], tuple[NDArray[np.float32], str]]:
    client = _client(addresses)

    def ask(values: Sequence[str]) -> tuple[NDArray[np.float32], str]:
        found = client.lookup(FEATURE, values, status=False)
        return found.vectors, found.version

    return ask


def _score(addresses: dict[str, Any]) -> Ask:
    client = _client(addresses)
    return lambda values: client.score({FEATURE: values, "item": values[::-1], "price": _PRICES[: len(values)]}).scores


def _client(addresses: dict[str, Any]) -> Any:
    from embstore.serving.client import Client

    return Client(f"http://{addresses['http']}")


def _grpc(addresses: dict[str, Any]) -> Ask:
    """With the protocol's messages, as stubs made by protoc have them."""
    import grpc

    from embstore.serving.messages import SERVICE, message

    request_type, response_type = message("ModelInferRequest"), message("ModelInferResponse")
    channel = grpc.insecure_channel(addresses["grpc"], options=[("grpc.max_receive_message_length", -1)])
    infer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    lengths = [length.to_bytes(4, "little") for length in range(256)]

    def ask(values: Sequence[str]) -> NDArray[np.float32]:
        texts = [value.encode() for value in values]
        request = request_type(model_name=MODEL)
        request.inputs.add(name=FEATURE, datatype="BYTES", shape=[len(texts)])
        request.outputs.add(name=f"{FEATURE}.embedding")
        request.raw_input_contents.append(b"".join([part for text in texts for part in (lengths[len(text)], text)]))
        response = infer(request, timeout=30)
        return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)

    return ask


def _triton_http(addresses: dict[str, Any]) -> Ask:
    from tritonclient import http

    return _triton(http, http.InferenceServerClient(addresses["http"]), binary_data=True)


def _triton_grpc(addresses: dict[str, Any]) -> Ask:
    from tritonclient import grpc

    return _triton(grpc, grpc.InferenceServerClient(addresses["grpc"]))


def _triton(library: Any, client: Any, **binary: bool) -> Ask:
    """The stock client of Triton, which encodes the values one by one."""
    name = f"{FEATURE}.embedding"

    def ask(values: Sequence[str]) -> NDArray[np.float32]:
        tensor = library.InferInput(FEATURE, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array(values, dtype=object), **binary)
        outputs = [library.InferRequestedOutput(name, **binary)]
        found: NDArray[np.float32] = client.infer(MODEL, [tensor], outputs=outputs).as_numpy(name)
        return found

    return ask


def _redis(addresses: dict[str, Any]) -> Ask:
    """redis-py as pip installs it, which parses answers in Python."""
    from redis._parsers import _RESP2Parser

    return _mget(addresses, _RESP2Parser)


def _hiredis(addresses: dict[str, Any]) -> Ask:
    """The same with its extra ``hiredis``, which parses them in C."""
    from redis._parsers import _HiredisParser

    return _mget(addresses, _HiredisParser)


def _mget(addresses: dict[str, Any], parser: type) -> Ask:
    from redis import ConnectionPool, Redis

    host, _, port = addresses["redis"].rpartition(":")
    client = Redis(connection_pool=ConnectionPool(host=host, port=int(port), parser_class=parser, protocol=2))
    return lambda values: np.frombuffer(b"".join(client.mget(values)), np.float32).reshape(-1, DIM)


def _feast(addresses: dict[str, Any]) -> Ask:
    import orjson

    host, _, port = addresses["feast"].rpartition(":")
    connection = HTTPConnection(host, int(port))
    name = "vectors:vector"

    def ask(values: Sequence[str]) -> NDArray[np.float32]:
        body = orjson.dumps({"features": [name], "entities": {FEATURE: values}})
        connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
        found = orjson.loads(connection.getresponse().read())
        at = found["metadata"]["feature_names"].index("vector")
        return np.array(found["results"][at]["values"], dtype=np.float32)

    return ask


_CALLERS: dict[str, Callable[[dict[str, Any]], Callable[[Sequence[str]], Any]]] = {
    HTTP: _http,
    VERSIONED: _versioned,
    SCORE: _score,
    GRPC: _grpc,
    TRITON_HTTP: _triton_http,
    TRITON_GRPC: _triton_grpc,
    REDIS: _redis,
    HIREDIS: _hiredis,
    FEAST: _feast,
}

"""Bodies of HTTP requests and responses: JSON alone, or JSON and then the raw bytes of tensors.

    {"inputs": [{"name": "user", "datatype": "BYTES", "shape": [1], "data": ["ann"]}]}

    {"inputs": [{"name": "user", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}]}....ann
    └── as many bytes as the header Inference-Header-Content-Length says ─────────────────────────────────┘

Data in JSON are flat or nested as the shape is. JSON has no NaN and no infinities: they are ``null`` in a response, and
``null`` in a request is a missing value; as raw bytes all numbers travel as they are.

Source: Open Inference Protocol v2, "Inference"; Triton Inference Server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from time import monotonic
from typing import Any

import orjson

from embstore.errors import LimitError, RequestError
from embstore.serving.protocol import InferRequest, InferResponse, Limits, Raw, RequestedOutput, Tensor

_COUNTED_BYTES = 65_536  # shorter JSON is parsed unseen
_JSON_BYTES = 12  # of a number in JSON, about
_LONGEST_SECONDS = 3600.0
_NOTHING: dict[str, Any] = {}
_UNSUPPORTED = ("shared_memory_region", "classification")


def parse(text: Raw, limits: Limits) -> Any:
    """What JSON says, if it isn't more than a request may hold.

    Raises:
        RequestError: it isn't JSON.
        LimitError: more values than twice the limit, counted (with the commas in text) before any is made.
    """
    if len(text) > _COUNTED_BYTES:
        whole = bytes(text)
        count = whole.count(b",") + whole.count(b"[") + whole.count(b"{")
        if count > 2 * limits.values:
            expected, do = f"JSON of at most {2 * limits.values:,} values", "ask in several requests, or send raw bytes"
            raise LimitError("request", expected=expected, found=f"{count:,}", do=do)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError("request", expected="JSON", found=str(error)) from error


def decode(
    body: Raw, header_length: int | None, *, model: str, version: str, limits: Limits, waited: float = 0.0
) -> InferRequest:
    """The request that a body holds; its raw tensors are views of the body.

    Args:
        header_length: bytes of JSON, other tensors' bytes follow; ``None``: all of it.
        waited: seconds since the request came, of which its ``timeout`` counts.

    Raises:
        RequestError: a damaged one.
        LimitError: more JSON than a request may hold.
    """
    if header_length is None:
        request, tail = parse(body, limits), memoryview(b"")
    elif header_length > len(body):
        found = f"{header_length:,} of a body of {len(body):,} bytes"
        raise RequestError("Inference-Header-Content-Length", expected="no more than the body", found=found)
    else:
        whole = memoryview(body)
        request, tail = parse(whole[:header_length], limits), whole[header_length:]
    if type(request) is not dict:
        raise RequestError("request", expected="a JSON object with inputs", found=type(request).__name__)
    parameters = _parameters(request, "request")
    identity = request.get("id", "")
    if type(identity) is not str:
        raise _wrong_type("id", "text", identity)
    inputs, at = [], 0
    for entry in _entries(request, "inputs"):
        tensor, at = _tensor(entry, tail, at)
        inputs.append(tensor)
    if at != len(tail):
        raise RequestError("binary data", expected=f"{at:,} bytes, as inputs say", found=f"{len(tail):,}")
    return InferRequest(
        model=model,
        version=version,
        id=identity,
        inputs=inputs,
        outputs=[_requested(entry) for entry in _entries(request, "outputs")] if request.get("outputs") else (),
        parameters=parameters,
        deadline=deadline_of(parameters["timeout"], waited) if "timeout" in parameters else None,
    )


def encode(response: InferResponse, request: InferRequest, limits: Limits) -> tuple[list[Raw], int | None]:
    """A response's body in parts, and how many bytes of it are JSON where others follow.

    Raises:
        LimitError: more JSON than a response may have.
    """
    binary = request.parameters.get("binary_data_output") is True
    asked = {output.name: output.parameters.get("binary_data", binary) for output in request.outputs}
    outputs, raw, written = [], [], 0
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if asked.get(tensor.name, binary):
            data = tensor.raw()
            entry["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            written += _JSON_BYTES * math.prod(tensor.shape)
            if written > limits.output_bytes:
                expected, do = f"JSON of about {limits.output_bytes:,} bytes at most", "ask for binary_data"
                raise LimitError("response", expected=expected, found=f"{written:,}", do=do)
            entry["data"] = tensor.json()
        outputs.append(entry)
    whole: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        whole["id"] = response.id
    whole["outputs"] = outputs
    header = orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
    return [header, *raw], len(header) if raw else None


def _entries(request: dict[str, Any], key: str) -> Sequence[dict[str, Any]]:
    entries = request.get(key, [])
    if type(entries) is not list or not all(type(entry) is dict for entry in entries):
        raise _wrong_type(key, "a list of objects", entries)
    return entries


def _parameters(of: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = of.get("parameters")
    if parameters is None:
        return _NOTHING
    if type(parameters) is not dict:
        raise _wrong_type(f"{where}: parameters", "an object", parameters)
    for name in _UNSUPPORTED:
        if name in parameters:
            raise RequestError(f"{where}: parameter {name!r}", expected="data in the body", found=name)
    return parameters


def _tensor(entry: dict[str, Any], tail: memoryview, at: int) -> tuple[Tensor, int]:
    """An input, and where the next one's raw bytes start."""
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if type(name) is not str or type(datatype) is not str or type(shape) is not list:
        raise RequestError("input", expected="name, datatype and shape", found=", ".join(entry)[:100] or "none of them")
    size = _parameters(entry, f"input {name[:100]!r}").get("binary_data_size")
    if size is None:
        data = entry.get("data")
        if type(data) is not list:
            raise _wrong_type(f"input {name[:100]!r}: data", "a list, or binary_data_size", data)
        tensor = Tensor(name, datatype, tuple(shape), data)
        return (Tensor(name, datatype, tuple(shape), _flat(tensor, data)) if _is_nested(data) else tensor), at
    if type(size) is not int or not 0 <= size <= len(tail) - at:
        found = f"{str(size)[:100]} with {len(tail) - at:,} bytes left"
        raise RequestError(f"input {name[:100]!r}: binary_data_size", expected="bytes that are there", found=found)
    if "data" in entry:
        raise RequestError(f"input {name[:100]!r}", expected="data or binary_data_size", found="both")
    return Tensor(name, datatype, tuple(shape), tail[at : at + size]), at + size


def _is_nested(data: list[Any]) -> bool:
    return bool(data) and type(data[0]) is list


def _flat(tensor: Tensor, data: list[Any]) -> list[Any]:
    """Nested data, row by row."""
    tensor.count()
    sizes = tensor.shape
    for depth, size in enumerate(sizes):
        rows = [data] if depth == 0 else data
        if any(type(row) is not list or len(row) != size for row in rows):
            do = "send the values of lists one after the other, and NAME.lengths"
            raise tensor.wrong("data", f"lists nested as the shape {list(sizes)} says", "others", do)
        data = data if depth == 0 else list(chain.from_iterable(rows))
    return data


def _requested(entry: dict[str, Any]) -> RequestedOutput:
    name = entry.get("name")
    if type(name) is not str:
        raise _wrong_type("output: name", "text", name)
    parameters = _parameters(entry, f"output {name[:100]!r}")
    if type(parameters.get("binary_data", False)) is not bool:
        raise _wrong_type(f"output {name[:100]!r}: binary_data", "true or false", parameters["binary_data"])
    return RequestedOutput(name, parameters)


def deadline_of(timeout: Any, waited: float = 0.0) -> float | None:
    """By Triton's parameter ``timeout``, in microseconds; 0: none."""
    if type(timeout) is not int or timeout < 0:
        raise _wrong_type("timeout", "microseconds", timeout)
    return monotonic() - waited + min(timeout / 1e6, _LONGEST_SECONDS) if timeout else None


def _wrong_type(what: str, expected: str, found: Any) -> RequestError:
    return RequestError(what, expected=expected, found="null" if found is None else type(found).__name__)

"""The Open Inference Protocol's tensors, requests and responses, however they travel.

A tensor's data are raw bytes (little-endian numbers, row by row; of ``BYTES`` each value is a length of 4 bytes and so
many bytes) or, from JSON and from protobuf's typed fields, a sequence of values. What its shape says of its size is
compared with what is there before anything is allocated.

Source: Open Inference Protocol v2, https://github.com/kserve/open-inference-protocol, with Triton's extensions for
binary tensor data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import LimitError, RequestError

NUMBERS: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(of)
    for name, of in {
        "BOOL": "?",
        **{f"{sign}INT{8 * size}": f"<{kind}{size}" for sign, kind in (("", "i"), ("U", "u")) for size in (1, 2, 4, 8)},
        **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    }.items()
}
BYTES = "BYTES"
MAX_DIMS = 8

Raw = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for.

    Args:
        values: in all its tensors.
        output_bytes: of its response.
        body_bytes: of the request as it travels.
    """

    values: int = 1_000_000
    output_bytes: int = 256 << 20
    body_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor of a request.

    Args:
        data: raw bytes, or values.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Raw | Sequence[Any] | NDArray[Any]

    def count(self) -> int:
        """Values in it, as its shape says.

        Raises:
            RequestError: a shape that no tensor has.
        """
        if len(self.shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in self.shape):
            expected = f"at most {MAX_DIMS} numbers, 0 or more"
            raise self.wrong("a shape", expected, _shown(self.shape))
        return math.prod(self.shape)

    def size(self) -> int:
        """What it counts for: its values, or its rows where they have none, as ``[1000000, 0]`` has."""
        return max(self.count(), self.shape[0] if self.shape else 1)

    def numbers(self) -> NDArray[Any]:
        """Its values, ``[count]``, as they are.

        Raises:
            RequestError: not as many as its shape says, or not numbers.
        """
        kind = NUMBERS.get(self.datatype)
        if kind is None:
            raise self.wrong("datatype", ", ".join(NUMBERS), self.datatype)
        count = self.count()
        if isinstance(self.data, bytes | memoryview):
            if len(self.data) != count * kind.itemsize:
                raise self.wrong(
                    "data", f"{count * kind.itemsize:,} bytes for {_shown(self.shape)}", f"{len(self.data):,}"
                )
            if kind == np.bool_:  # whatever else a byte holds
                return np.frombuffer(self.data, dtype=np.uint8) != 0
            return np.frombuffer(self.data, dtype=kind)
        if len(self.data) != count:
            raise self.wrong("data", f"{count:,} values for {_shown(self.shape)}", f"{len(self.data):,}")
        return _numbers(self, kind)

    def texts(self) -> Sequence[Any]:
        """Values that came as a sequence, ``str``, ``bytes`` or ``None`` each; raw ones are ``values.byte_tokens``'s.

        Raises:
            RequestError: not as many as its shape says.
        """
        if len(self.data) != self.count():
            raise self.wrong("data", f"{self.count():,} values for {_shown(self.shape)}", f"{len(self.data):,}")
        return self.data  # type: ignore[return-value]

    def wrong(self, what: str, expected: str, found: str, do: str = "") -> RequestError:
        """An error about it."""
        return RequestError(f"tensor {_shown(self.name)}: {what}", expected=expected, found=found, do=do)


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """A tensor to answer with.

    Args:
        binary: raw bytes rather than JSON; decided by the request where ``None``.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What is asked.

    Args:
        version: an alias, tag or version id; the server's own alias when empty.
        outputs: all that the inputs allow when empty.
        deadline: ``time.monotonic()`` when nobody waits for the answer any more.
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: Sequence[Tensor]
    outputs: Sequence[RequestedOutput] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A named tensor of a response: an array of numbers, or text, binary or integers of an Arrow array."""

    name: str
    values: NDArray[Any] | pa.Array
    shape: tuple[int, ...]

    @property
    def datatype(self) -> str:
        """The protocol's name of its type."""
        if isinstance(self.values, np.ndarray):
            return _NAMES[self.values.dtype]
        return "INT64" if pa.types.is_integer(self.values.type) or pa.types.is_boolean(self.values.type) else BYTES

    def raw(self) -> Raw:
        """Its bytes as they travel; of numbers the array's own memory."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values).reshape(-1).view(np.uint8).data
        if self.datatype == "INT64":
            return self.values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        texts = [b"" if value is None else _bytes(value) for value in self.values.to_pylist()]
        return b"".join(part for text in texts for part in (len(text).to_bytes(4, "little"), text))

    def json(self) -> Any:
        """Its values as JSON has them, flat: an array of numbers, or a list with ``None`` for what is absent."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values).reshape(-1)
        return [
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in self.values.to_pylist()
        ]


_NAMES = {kind: name for name, kind in NUMBERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """The answer.

    Args:
        version: the immutable version it is from.
    """

    model: str
    version: str
    id: str
    outputs: Sequence[OutputTensor]


def check_size(tensors: Sequence[Tensor], limits: Limits) -> None:
    """Raise ``LimitError`` where tensors have more values than a request may."""
    total = sum(tensor.size() for tensor in tensors)
    if total > limits.values:
        expected, do = f"at most {limits.values:,} values", "ask in several requests"
        raise LimitError("request", expected=expected, found=f"{total:,}", do=do)


def _numbers(tensor: Tensor, kind: np.dtype[Any]) -> NDArray[Any]:
    """Values of a sequence, without losing any of their digits."""
    expected = f"{tensor.datatype} values"
    types = {type(value) for value in tensor.data}
    if not types <= ({bool} if kind == np.bool_ else {int} if kind.kind in "iu" else {int, float}):
        found = ", ".join(sorted(of.__name__ for of in types))
        raise tensor.wrong("data", expected, found)
    try:
        with np.errstate(over="ignore"):  # too large for a float: infinite
            return np.array(tensor.data, dtype=kind)
    except (OverflowError, ValueError) as error:
        raise tensor.wrong("data", expected, str(error)) from error


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _shown(value: Any) -> str:
    """A value from outside, for a message."""
    text = repr(list(value[:100]) if isinstance(value, tuple) else value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."

"""Requests of the protocol's tensors are answered as the reader would, bit for bit."""

from __future__ import annotations

import struct
from time import monotonic
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop import FEATURES, RECORDS

from embstore.errors import DataError, DeadlineError, LimitError, RequestError, SchemaError
from embstore.schema import Feature
from embstore.serving.protocol import InferRequest, InferResponse, Limits, RequestedOutput, Tensor
from embstore.serving.reader import Reader
from embstore.serving.service import infer
from embstore.serving.values import tensor_tokens, tokens_of


def texts(name: str, values: list[Any], shape: tuple[int, ...] | None = None) -> Tensor:
    """A raw BYTES tensor."""
    parts = [value.encode() if isinstance(value, str) else value for value in values]
    data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    return Tensor(name, "BYTES", shape or (len(values),), data)


def numbers(name: str, values: list[Any], datatype: str = "INT64", kind: str = "<i8") -> Tensor:
    """A raw tensor of numbers."""
    return Tensor(name, datatype, (len(values),), np.array(values, dtype=kind).tobytes())


def wire() -> list[Tensor]:
    """``RECORDS`` as raw tensors."""
    out: list[Tensor] = []
    for feature in FEATURES:
        values = RECORDS[feature.name]
        if feature.name == "tags":
            elements = [element for row in values if row for element in row]
            out += [
                texts("tags", ["" if element is None else element for element in elements]),
                numbers("tags.missing", [element is None for element in elements], "BOOL", "?"),
                numbers("tags.lengths", [-1 if row is None else len(row) for row in values], "INT32", "<i4"),
            ]
            continue
        missing = [value is None for value in values]
        is_text = feature.name in ("user", "country")
        filled = [("" if is_text else 0) if value is None else value for value in values]
        out.append(texts(feature.name, filled) if is_text else numbers(feature.name, filled))
        if any(missing):
            out.append(numbers(f"{feature.name}.missing", missing, "BOOL", "?"))
    for name in ("price", "age"):
        filled = [float("nan") if value is None else value for value in RECORDS[name]]
        out.append(numbers(name, filled, "FP64", "<f8"))
    return out


def ask(reader: Reader, inputs: list[Tensor], *outputs: str, limits: Limits | None = None) -> InferResponse:
    wanted = [RequestedOutput(name) for name in outputs]
    return infer(InferRequest(model="shop", inputs=inputs, outputs=wanted), reader, limits or Limits())


def test_all_outputs_are_the_readers(reader: Reader) -> None:
    response = ask(reader, wire())
    assert response.version == reader.version.id
    found = {output.name: output.raw() for output in response.outputs}
    for feature in FEATURES:
        looked = reader.lookup(feature.name, RECORDS[feature.name])
        assert bytes(found[f"{feature.name}.embedding"]) == looked.vectors_BW.tobytes()
        assert bytes(found[f"{feature.name}.status"]) == looked.status_N.tobytes()
    embedding, score = ask(reader, wire(), "embedding", "score").outputs
    assert bytes(embedding.raw()) == reader.embed(RECORDS).tobytes()
    assert bytes(score.raw()) == reader.score(RECORDS).tobytes()


def test_values_of_json(reader: Reader) -> None:
    inputs = [Tensor("user", "BYTES", (5,), RECORDS["user"]), Tensor("item", "INT64", (5, 1), RECORDS["item"])]
    user, _, item, _ = ask(reader, inputs).outputs
    assert bytes(user.raw()) == reader.lookup("user", RECORDS["user"]).vectors_BW.tobytes()
    assert bytes(item.raw()) == reader.lookup("item", RECORDS["item"]).vectors_BW.tobytes()


def test_lists_of_one_length(reader: Reader) -> None:
    found = ask(reader, [texts("tags", ["a", "b", "c", "d"], (2, 2))], "tags.embedding").outputs[0]
    assert bytes(found.raw()) == reader.lookup("tags", [["a", "b"], ["c", "d"]]).vectors_BW.tobytes()
    one = ask(reader, [texts("tags", ["a", "b"])], "tags.embedding").outputs[0]
    assert bytes(one.raw()) == reader.lookup("tags", [["a"], ["b"]]).vectors_BW.tobytes()


@given(
    rows=st.lists(st.none() | st.lists(st.none() | st.binary(max_size=40), max_size=6), max_size=20),
    max_length=st.none() | st.integers(1, 4),
)
def test_lists_have_the_tokens_of_arrow(rows: list[Any], max_length: int | None) -> None:
    feature = Feature(name="f", max_length=max_length)
    values = [value for row in rows if row is not None for value in row]
    tensors = {
        "f": texts("f", [value or b"" for value in values]),
        "f.missing": numbers("f.missing", [value is None for value in values], "BOOL", "?"),
        "f.lengths": numbers("f.lengths", [-1 if row is None else len(row) for row in rows]),
    }
    import pyarrow as pa

    expected = tokens_of(pa.array(rows, pa.list_(pa.binary())), feature, "list<element: binary>")
    found = tensor_tokens(tensors, feature, "list<element: binary>")
    assert expected.offsets is not None
    assert found.offsets is not None
    assert (found.values.tolist(), found.offsets.tolist()) == (expected.values.tolist(), expected.offsets.tolist())


@pytest.mark.parametrize(
    ("tensor", "error", "said"),
    [
        (texts("usr", ["a"]), RequestError, "did you mean 'user'"),
        (Tensor("user", "BYTES", (2,), b"\1\0\0\0a"), RequestError, "each with its length"),
        (Tensor("user", "BYTES", (2,), b"\1\0\0\0a\1\0\0\0"), RequestError, "a length of 1 with 0 bytes left"),
        (Tensor("user", "BYTES", (1,), b"\1\0\0\0ab"), RequestError, "5 bytes in 1 values"),
        (Tensor("user", "BYTES", (1,), b"\xff\xff\xff\xffab"), RequestError, "a length of 4,294,967,295"),
        (texts("user", ["x" * 70_000]), DataError, "at most 65,536 bytes"),
        (Tensor("user", "BYTES", (-1,), b""), RequestError, "0 or more"),
        (Tensor("user", "BYTES", (1 << 62, 1 << 62), b""), LimitError, "at most 1,000,000 values"),
        (Tensor("item", "INT64", (2,), b"12345678"), RequestError, "16 bytes"),
        (Tensor("item", "INT64", (1,), ["1"]), RequestError, "INT64 values"),
        (Tensor("item", "INT64", (1,), [1 << 70]), RequestError, "INT64 values"),
        (texts("item", ["1"]), SchemaError, "expected INT64"),
        (numbers("user", [1]), SchemaError, "expected BYTES"),
        (numbers("item", [1.0], "FP32", "<f4"), SchemaError, "can't be a feature"),
        (numbers("hour", [24]), SchemaError, "0 to 23"),
        (Tensor("item", "STRING", (1,), b""), SchemaError, "can't be a feature"),
    ],
)
def test_bad_tensors(reader: Reader, tensor: Tensor, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ask(reader, [tensor])


def test_bad_requests(reader: Reader) -> None:
    user, more = texts("user", ["a"]), texts("item.missing", ["a"])
    for inputs, outputs, said in (
        ([], (), "a tensor for each feature"),
        ([user, user], (), "found two"),
        ([user, more], (), "did you mean"),
        ([user], ("user.vector",), "known: embedding, score, user.embedding"),
        ([user], ("embedding",), "all features of the model"),
        (wire()[:-1], ("score",), "all dense columns"),
        ([user, numbers("user.missing", [True, False], "BOOL", "?")], (), "1 as the values"),
        ([texts("tags", ["a"]), numbers("tags.lengths", [2])], (), "-1 to 1"),
        ([texts("tags", ["a", "b"]), numbers("tags.lengths", [1])], (), "a sum of 2"),
    ):
        with pytest.raises(RequestError, match=said):
            ask(reader, inputs, *outputs)
    with pytest.raises(LimitError, match="a response of at most 100 bytes"):
        ask(reader, [texts("user", ["a"] * 100)], limits=Limits(output_bytes=100))
    late = InferRequest(model="shop", inputs=[user], deadline=monotonic())
    with pytest.raises(DeadlineError):
        infer(late, reader, Limits())

"""A request -> its response: the one place that both protocols ask.

input            user  [B] BYTES                 one tensor a feature (values.py has those that go with it),
                 price [B] FP32                  and, for scores, one a dense column
output           user.embedding [B, width] FP32
                 user.status    [N] UINT8        0 known, 1 missing, 2 pruned, 3 unseen; one for each value
                 embedding      [B, W] FP32      of all features, as the model reads them
                 score          [B] FP32         the model's probability
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import DeadlineError, LimitError, RequestError, nearest
from embstore.schema import Feature, Schema
from embstore.serving.protocol import (
    BYTES,
    NUMBERS,
    InferRequest,
    InferResponse,
    Limits,
    OutputTensor,
    Tensor,
    check_size,
)
from embstore.serving.reader import Reader, count
from embstore.serving.values import LENGTHS, MISSING, tensor_tokens
from embstore.tokens import Tokens

EMBEDDING, STATUS, SCORE = "embedding", "status", "score"


def infer(request: InferRequest, reader: Reader, limits: Limits) -> InferResponse:
    """Answer a request from one version.

    Raises:
        RequestError: tensors that are damaged, unknown or don't fit together.
        LimitError: more values, or a larger response, than the limits.
        DeadlineError: nobody waits any more.
        SchemaError, DataError: values that a feature can't take.
        ConfigError: a score without a network.
    """
    if request.deadline is not None and monotonic() >= request.deadline:
        raise DeadlineError("request", expected="an answer in time", found="none any more", do="give it more time")
    check_size(request.inputs, limits)
    return _Answer(request, reader, limits).response()


class _Answer:
    """One request on its way; what several outputs need is computed once."""

    def __init__(self, request: InferRequest, reader: Reader, limits: Limits) -> None:
        self.request, self.reader, self.limits = request, reader, limits
        self.tensors = _by_name(request.inputs)
        schema = reader.version.schema
        self.features = [feature for feature in schema.features if feature.name in self.tensors]
        _check_known(self.tensors, schema)
        self._tokens: dict[str, Tokens] = {}
        self._bytes = 0

    def response(self) -> InferResponse:
        wanted = [output.name for output in self.request.outputs] or [
            f"{feature.name}.{what}" for feature in self.features for what in (EMBEDDING, STATUS)
        ]
        request, version = self.request, self.reader.version
        outputs = [self._output(name) for name in wanted]
        return InferResponse(model=request.model, version=version.id, id=request.id, outputs=outputs)

    def _output(self, name: str) -> OutputTensor:
        if name == EMBEDDING:
            return _tensor(name, self._embedding())
        if name == SCORE:
            return _tensor(name, self._score())
        feature, _, what = name.rpartition(".")
        if feature not in self.tensors or what not in (EMBEDDING, STATUS):
            known = [f"{of.name}.{what}" for of in self.features for what in (EMBEDDING, STATUS)]
            raise RequestError(f"output {name!r}", do=nearest(name, [*known, EMBEDDING, SCORE]))
        tokens = self._of(self.reader.feature(feature))
        if what == STATUS:
            return _tensor(name, self.reader.version.status(feature, tokens.values))
        return _tensor(name, self._vectors([self.reader.feature(feature)]))

    def _of(self, feature: Feature) -> Tokens:
        if feature.name not in self._tokens:
            trained_on = self.reader.trained_on(feature.name)
            self._tokens[feature.name] = tensor_tokens(self.tensors, feature, trained_on)
        return self._tokens[feature.name]

    def _vectors(self, features: list[Feature]) -> NDArray[np.float32]:
        prepared = self.reader.prepare(*(feature.name for feature in features))
        tokens = {feature.name: self._of(feature) for feature in features}
        rows = max(count(of) for of in tokens.values())
        self._take(rows * prepared.width * 4)
        return prepared.of_tokens(tokens)

    def _embedding(self) -> NDArray[np.float32]:
        schema = self.reader.version.schema
        absent = [feature.name for feature in schema.features if feature.name not in self.tensors]
        if absent:
            do = f"add {absent[0]!r}; values that are not known are missing ({absent[0] + MISSING})"
            raise RequestError("inputs", expected="all features of the model", found=f"no {', '.join(absent)}", do=do)
        return self._vectors(list(schema.features))

    def _score(self) -> NDArray[np.float32]:
        columns = self.reader.version.schema.dense
        absent = [column.name for column in columns if column.name not in self.tensors]
        if absent:
            do = f"add {absent[0]!r}; NaN where missing"
            raise RequestError("inputs", expected="all dense columns", found=f"no {', '.join(absent)}", do=do)
        dense = [_dense_numbers(self.tensors[column.name]) for column in columns]
        return self.reader.score_of(self._embedding(), dense)

    def _take(self, size: int) -> None:
        """Count bytes of the response before they are allocated."""
        self._bytes += size
        if self._bytes > self.limits.output_bytes:
            expected, do = f"a response of at most {self.limits.output_bytes:,} bytes", "ask in several requests"
            raise LimitError("request", expected=expected, found=f"{self._bytes:,}", do=do)


def _by_name(inputs: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for tensor in inputs:
        if tensor.name in tensors:
            raise tensor.wrong("inputs", "one of that name", "two")
        tensors[tensor.name] = tensor
    if not tensors:
        raise RequestError("inputs", expected="a tensor for each feature asked for", found="none")
    return tensors


def _check_known(tensors: Mapping[str, Tensor], schema: Schema) -> None:
    """No input may be there for nothing: a misspelt name would go unnoticed."""
    names = [feature.name for feature in schema.features]
    known = {*names, *(column.name for column in schema.dense)}
    beside = {name + suffix for name in names if name in tensors for suffix in (LENGTHS, MISSING)}
    for name in tensors:
        if name not in known and name not in beside:
            raise RequestError(f"input {name!r}", do=nearest(name, known, also=beside))


def _dense_numbers(tensor: Tensor) -> NDArray[np.float32]:
    if tensor.datatype == BYTES or tensor.datatype not in NUMBERS:
        raise tensor.wrong("datatype", "a number's", tensor.datatype)
    if isinstance(tensor.data, list) and None in tensor.data:
        filled = [float("nan") if value is None else value for value in tensor.data]
        tensor = Tensor(tensor.name, "FP64", tensor.shape, filled)
    with np.errstate(over="ignore"):  # too large for float32: infinite
        return tensor.numbers().astype(np.float64).astype(np.float32)


def _tensor(name: str, values: NDArray[Any]) -> OutputTensor:
    return OutputTensor(name, values, values.shape)

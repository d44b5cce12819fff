"""A request -> its response: the one place that both protocols ask.

input            user  [B] BYTES                 one tensor a feature (values.py has those that go with it),
                 price [B] FP32                  and, for scores, one a dense column
output           user.embedding [B, width] FP32
                 user.status    [N] UINT8        0 known, 1 missing, 2 pruned, 3 unseen; one for each value
                 embedding      [B, W] FP32      of all features, as the model reads them
                 score          [B] FP32         the model's probability
                 item.neighbors [B, k] BYTES     or INT64: the nearest values of the feature, and
                 item.scores    [B, k] FP32      how near: higher is nearer, -inf where there are fewer

Neighbours are of values or, given as ``item.vector`` [B, width] FP32, of vectors; the request's parameter ``k`` (10)
says how many, ``exact`` whether an index's graph is left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
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

MOST_NEIGHBORS = 10_000
MOST_PRODUCTS = 1 << 33  # numbers multiplied in a search, some seconds
EMBEDDING, STATUS, SCORE = "embedding", "status", "score"
NEIGHBORS, SCORES, VECTOR = "neighbors", "scores", ".vector"


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


def searches(request: InferRequest) -> bool:
    """Whether neighbours are asked for, which take long even of few values."""
    return any(output.name.endswith((f".{NEIGHBORS}", f".{SCORES}")) for output in request.outputs)


class _Answer:
    """One request on its way; what several outputs need is computed once."""

    def __init__(self, request: InferRequest, reader: Reader, limits: Limits) -> None:
        self.request, self.reader, self.limits = request, reader, limits
        self.tensors = _by_name(request.inputs)
        schema = reader.version.schema
        self.features = [feature for feature in schema.features if feature.name in self.tensors]
        _check_known(self.tensors, schema)
        self._tokens: dict[str, Tokens] = {}
        self._found: dict[str, tuple[pa.Array, NDArray[np.float32]]] = {}
        self._bytes = 0

    def response(self) -> InferResponse:
        wanted = [output.name for output in self.request.outputs] or [
            f"{feature.name}.{what}" for feature in self.features for what in (EMBEDDING, STATUS)
        ]
        if len(set(wanted)) != len(wanted):
            raise RequestError("outputs", expected="each once", found="one of them twice")
        if self.reader.waits:
            self._read_ahead(wanted)
        request, version = self.request, self.reader.version
        outputs = [self._output(name) for name in wanted]
        return InferResponse(model=request.model, version=version.id, id=request.id, outputs=outputs)

    def _read_ahead(self, wanted: list[str]) -> None:
        """Have the rows of all outputs at hand at once, not of one after the other."""
        if EMBEDDING in wanted or SCORE in wanted:
            features = self.features
        else:
            of_rows = (EMBEDDING, NEIGHBORS, SCORES)
            features = [of for of in self.features if any(f"{of.name}.{what}" in wanted for what in of_rows)]
        tokens = {feature.name: self._of(feature) for feature in features}
        slices = self.reader.version.plan.slices
        self._check(sum(count(of) * 4 * (slices[name].stop - slices[name].start) for name, of in tokens.items()))
        if tokens:
            self.reader = self.reader.ahead(tokens, self.request.deadline)

    def _output(self, name: str) -> OutputTensor:
        if name == EMBEDDING:
            return _tensor(name, self._embedding())
        if name == SCORE:
            return _tensor(name, self._score())
        feature, _, what = name.rpartition(".")
        if what in (NEIGHBORS, SCORES) and (feature in self.tensors or feature + VECTOR in self.tensors):
            values, scores_BK = self._neighbors(feature)
            return _tensor(name, scores_BK) if what == SCORES else OutputTensor(name, values, scores_BK.shape)
        if feature not in self.tensors or what not in (EMBEDDING, STATUS):
            known = [f"{of.name}.{what}" for of in self.features for what in (EMBEDDING, STATUS)]
            raise RequestError(f"output {name!r}", do=nearest(name, [*known, EMBEDDING, SCORE]))
        tokens = self._of(self.reader.feature(feature))
        if what == STATUS:
            self._take(len(tokens.values))
            return _tensor(name, self.reader.version.status(feature, tokens.values))
        return _tensor(name, self._vectors([self.reader.feature(feature)]))

    def _of(self, feature: Feature) -> Tokens:
        if feature.name not in self._tokens:
            trained_on = self.reader.trained_on(feature.name)
            tokens = tensor_tokens(self.tensors, feature, trained_on)
            self._tokens[feature.name] = self.reader.filtered(feature, tokens)
        return self._tokens[feature.name]

    def _vectors(self, features: list[Feature]) -> NDArray[np.float32]:
        prepared = self.reader.prepare(*(feature.name for feature in features))
        tokens = {feature.name: self._of(feature) for feature in features}
        rows = max(count(of) for of in tokens.values())
        self._take(rows * prepared.width * 4)
        return prepared.of_tokens(tokens)

    def _neighbors(self, feature: str) -> tuple[pa.Array, NDArray[np.float32]]:
        """Of values, or of vectors; searched once for both outputs."""
        if feature in self._found:
            return self._found[feature]
        parameters, spec, index = self.request.parameters, self.reader.feature(feature), self.reader.index(feature)
        k, exact = parameters.get("k", 10), parameters.get("exact", False)
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST_NEIGHBORS or not isinstance(exact, bool):
            expected = f"k of 1 to {MOST_NEIGHBORS:,}, exact of true or false"
            raise RequestError("parameters", expected=expected, found=f"k={k!r}, exact={exact!r}"[:100])
        token_Q = None
        if feature in self.tensors:
            vectors_QD, tokens = self._vectors([spec]), self._of(spec)
            token_Q = tokens.values if tokens.offsets is None else None
        else:
            vectors_QD = _vectors_of(self.tensors[feature + VECTOR], index.near.width)
        work = index.near.products(len(vectors_QD), k, exact=exact)
        if work > MOST_PRODUCTS:
            expected, do = f"a search of at most {MOST_PRODUCTS:,} products", "ask for fewer values, or smaller k"
            raise LimitError("request", expected=expected, found=f"{work:,}", do=do)
        self._take(len(vectors_QD) * k * 20)
        positions_QK, scores_QK = index.nearest(vectors_QD, k, token_Q=token_Q, exact=exact)
        self._take(index.near.value_bytes(positions_QK))
        self._found[feature] = index.near.values_at(positions_QK), scores_QK
        return self._found[feature]

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
        self._check(self._bytes)

    def _check(self, size: int) -> None:
        if size > self.limits.output_bytes:
            expected, do = f"a response of at most {self.limits.output_bytes:,} bytes", "ask in several requests"
            raise LimitError("request", expected=expected, found=f"{size:,}", do=do)


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
    beside |= {name + VECTOR for name in names if name not in tensors}
    for name in tensors:
        if name not in known and name not in beside:
            raise RequestError(f"input {name!r}", do=nearest(name, known, also=beside))


def _vectors_of(tensor: Tensor, width: int) -> NDArray[np.float32]:
    """Queries, ``[B, width]``."""
    if tensor.datatype not in ("FP16", "FP32", "FP64") or len(tensor.shape) != 2 or tensor.shape[1] != width:
        found = f"{tensor.datatype} {list(tensor.shape)}"
        raise tensor.wrong("vectors", f"FP32 [rows, {width}]", found)
    with np.errstate(over="ignore"):  # too large for float32: infinite, which search refuses
        return tensor.numbers().reshape(tensor.shape).astype(np.float32)


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

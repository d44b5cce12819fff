"""Scores of values and of fields, as files: of anyone's making, or a folder of ``embstore select``.

scores/
  feature=user_id/part-0.parquet    value, score
  fields.parquet                    field, score (or log_score)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import DataError, LogError, SchemaError
from embstore.selection.scores import COLUMNS, Scores
from embstore.store.values import FEATURE, open_dataset, reading
from embstore.tokens import tokenize

if TYPE_CHECKING:
    from embstore.vocabulary import Vocabulary

_VALUE, _SCORE, _FIELD = "value", "score", "field"


def read_scores(folder: str | Path, vocabulary: Vocabulary) -> dict[str, NDArray[np.float64]]:
    """Scores of the vocabulary's values, in their order; of a value that is not kept 0 where there is none.

    Raises:
        LogError, SchemaError: they can't be read, or other columns.
        DataError: a value twice, without a score, or none of a value that is kept.
    """
    if (Path(folder) / COLUMNS).exists():
        _check_vocabulary(Path(folder), vocabulary)
        return value_scores(vocabulary, Scores.from_parquet(folder))
    paths = {unquote(path.name.partition("=")[2]): path for path in sorted(Path(folder).glob(f"{FEATURE}=*/"))}
    if not paths:
        raise LogError(f"scores {folder}", expected=f"folders {FEATURE}=NAME", found="none")
    out = {}
    for name, path in paths.items():
        if name not in vocabulary:
            continue
        source = open_dataset(path, "scores")
        if not {_VALUE, _SCORE} <= set(source.schema.names):
            found = ", ".join(source.schema.names)
            raise SchemaError(f"scores {path}", expected=f"columns {_VALUE} and {_SCORE}", found=found)
        with reading(f"scores {path}"):
            table = source.to_table(columns=[_VALUE, _SCORE], use_threads=False)
        if table.column(_SCORE).null_count:
            raise DataError(f"scores of {name!r}", expected="one for each value", found="a missing one")
        tokens_N = tokenize(table.column(_VALUE), name=name).values
        out[name] = _aligned(vocabulary, name, tokens_N, table.column(_SCORE).to_numpy().astype(np.float64))
    return out


def value_scores(vocabulary: Vocabulary, scores: Scores) -> dict[str, NDArray[np.float64]]:
    """By feature, a score for each value, float64 ``[V]``; 0 of those that are not kept, which have none.

    Args:
        scores: of a selection by this vocabulary.
    """
    out = {}
    for name, of in vocabulary.items():
        if name in scores.layout.fields:
            out[name] = np.zeros(len(of))
            out[name][of.kept] = scores.of_field(name)[: int(of.kept.sum())]
    return out


def _check_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Columns have numbers, not values: they are those of the vocabulary that the selection was by."""
    try:
        by = json.loads((folder / "manifest.json").read_text())["lineage"]["vocabulary"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogError(f"scores {folder}", expected="the manifest of a selection", found=str(error)) from error
    if not isinstance(by, dict) or by.get("sha256") != vocabulary.digest():
        found = "another" if isinstance(by, dict) else "none"
        do = "prune the vocabulary that the selection was by"
        raise DataError(f"scores {folder}", expected="scores by this vocabulary", found=found, do=do)


def read_field_scores(folder: str | Path) -> dict[str, float]:
    """Scores of fields, or their logarithms, in the order of the file.

    Raises:
        LogError, SchemaError: they can't be read, or other columns.
    """
    path = Path(folder) / "fields.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"scores {path}", expected="scores of fields", found=str(error).split("\n")[0]) from error
    column = next((name for name in (_SCORE, "log_score") if name in table.column_names), None)
    if column is None or _FIELD not in table.column_names:
        found = ", ".join(table.column_names)
        raise SchemaError(f"scores {path}", expected=f"columns {_FIELD} and {_SCORE}", found=found)
    return dict(zip(table.column(_FIELD).to_pylist(), table.column(column).to_pylist(), strict=True))


def _aligned(
    vocabulary: Vocabulary, name: str, tokens_N: NDArray[np.uint64], score_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    of, order_N = vocabulary[name], np.argsort(tokens_N, kind="stable")
    sorted_N = tokens_N[order_N]
    if (sorted_N[1:] == sorted_N[:-1]).any():
        raise DataError(f"scores of {name!r}", expected="each value once", found="one twice")
    at_V = np.searchsorted(sorted_N, of.tokens)
    found_V = at_V < len(sorted_N)
    found_V[found_V] = sorted_N[at_V[found_V]] == of.tokens[found_V]
    if missing := int((of.kept & ~found_V).sum()):
        found = f"{missing:,} without"
        raise DataError(f"scores of {name!r}", expected="one for each value that is kept", found=found)
    score_V = np.zeros(len(of))
    score_V[found_V] = score_N[order_N][at_V[found_V]]
    return score_V

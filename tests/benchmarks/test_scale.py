"""The job at several sizes: its log is the planted rows, and its claims are of the reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.selections.scale import FILES, exponent, measured, write
from embstore.logs import ParquetLog
from embstore.schema import Schema
from embstore.selection import Columns, LogBatches
from embstore.selection.planted import PlantedBatches
from embstore.vocabulary import Vocabulary


def test_the_log_is_the_planted_rows(tmp_path: Path) -> None:
    source = PlantedBatches(batches=16, rows=64, columns=400, signal_fields=1, mixed_fields=1, noise_fields=1)
    write(source, tmp_path / "log")
    schema = Schema.from_dict({"label": "y", "features": list(source.layout.names)})
    log = ParquetLog([tmp_path / "log" / f"{number}.parquet" for number in range(FILES[-1])], schema)
    columns = Columns(schema=schema, vocabulary=Vocabulary.from_parquet(tmp_path / "log" / "vocabulary"))
    shift_F = columns.layout.bounds_F[:-1] - source.layout.bounds_F[:-1]
    found = list(LogBatches(log=log, columns=columns, rows=64, shuffle_window=0))
    for batch, planted in zip(found, source, strict=True):
        codes_NF = planted.indices_E.reshape(64, -1) + shift_F
        assert np.array_equal(batch.indices_E.reshape(64, -1), codes_NF)
        assert np.array_equal(batch.labels_N, planted.labels_N)


def test_claims_of_reports() -> None:
    sizes = {
        rows: {
            "seconds": {"count": rows / 1e6, "once": 9.0, "search": rows / 5e5},
            "cpu_seconds": {"count": rows / 1e6, "once": 9.0, "search": rows / 1e6},
            "whole": 9.0 + 3 * rows / 1e6,
            "memory": 2**20 * 300,
            "process_seconds": 10.0,
            "others_cpu_seconds": 0.1,
        }
        for rows in (1_000_000, 2_000_000, 4_000_000)
    }
    part = measured(sizes, columns=1000)
    claims = {name: of["value"] for name, of in part.claims.items()}
    assert claims["exponent"] == pytest.approx(1.0)
    assert claims["log_nnz_per_second"] == pytest.approx(32 * 4_000_000 / 12)
    assert claims["pass_memory"] == 300
    assert not any("disturbed" in of for of in part.claims.values())
    assert exponent({10: 1.0, 100: 100.0}) == pytest.approx(2.0)

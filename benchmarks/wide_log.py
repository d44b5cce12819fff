"""A generated log of clicks most of whose features have very many values: what a vocabulary is hard to count of.

    session_id    text of 32 hexadecimal digits; a value in 4 rows
    device_id     text of 36, as UUIDs are written; a value in 7 rows
    user_id       text of 12; a value in 8 rows, by a power law
    query         text of 10 to 40; a value in 16 rows, by a power law
    item_id       integers; a value in 20 rows, by a power law
    ad_id, domain, tags, country     fewer values, by power laws; timestamp, click

Chunks of rows are made from (seed, chunk) alone. About 230 bytes a row in memory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.hashing import splitmix64
from embstore.schema import Feature, Schema

CHUNK_ROWS = 131_072
_DAY_US = 86_400_000_000
_START_US = 1_736_121_600_000_000  # 6 January 2025
_COUNTRIES = pa.array([f"C{of:02d}" for of in range(16)])
_TAGS = pa.array([f"tag{of:05d}" for of in range(60_000)])
_DIGITS = np.array([f"{byte:02x}".encode() for byte in range(256)], "S2").view(np.uint16)


@dataclass(frozen=True, kw_only=True)
class WideLog:
    """So many rows of it, over so many days, made from a seed."""

    rows: int
    days: int = 8
    seed: int = 0

    def schema(self) -> Schema:
        """Ten features and the label ``click``."""
        names = ("session_id", "device_id", "user_id", "query", "item_id", "ad_id", "domain", "country")
        return Schema(
            label="click",
            features=(
                *(Feature(name=name) for name in names),
                Feature(name="tags", pooling="mean", max_length=3),
                Feature(name="hour", column="timestamp", transform="hour"),
            ),
        )

    def table(self, chunk: int) -> pa.Table:
        """The rows of a chunk."""
        start, stop = chunk * CHUNK_ROWS, min(self.rows, (chunk + 1) * CHUNK_ROWS)
        count = stop - start
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, chunk))))
        columns = {
            "session_id": _hexadecimal(_even(rng, count, self.rows // 4), 1, 32),
            "device_id": _uuids(_even(rng, count, self.rows // 7), 2),
            "user_id": _hexadecimal(_power(rng, count, self.rows // 8), 3, 12),
            "query": _hexadecimal(_power(rng, count, self.rows // 16), 4, 40, least=10),
            "item_id": (_mixed(_power(rng, count, self.rows // 20), 5) >> np.uint64(20)).astype(np.int64),
            "ad_id": _power(rng, count, self.rows // 80) * 17,
            "domain": _hexadecimal(_power(rng, count, self.rows // 400), 6, 20, least=8),
            "country": _COUNTRIES.take(pa.array(_power(rng, count, len(_COUNTRIES)))),
            "tags": pa.ListArray.from_arrays(
                np.arange(0, 2 * count + 1, 2, dtype=np.int32), _TAGS.take(pa.array(_power(rng, 2 * count, len(_TAGS))))
            ),
            "timestamp": pa.array(
                _START_US + np.arange(start, stop) * (self.days * _DAY_US // self.rows), pa.timestamp("us")
            ),
            "click": rng.integers(0, 2, count, np.int8),
        }
        return pa.table(columns)

    def write(self, folder: Path, *, files: int, threads: int) -> list[Path]:
        """Write it as so many files, about alike in rows, in their order."""
        folder.mkdir(parents=True)
        chunks = np.array_split(np.arange(-(-self.rows // CHUNK_ROWS)), files)

        def one(number: int) -> Path:
            path = folder / f"part-{number:05d}.parquet"
            with pq.ParquetWriter(path, self.table(0).schema, compression="zstd") as writer:
                for chunk in chunks[number].tolist():
                    writer.write_table(self.table(chunk))
            return path

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(files)))


def _even(rng: np.random.Generator, count: int, values: int) -> NDArray[np.int64]:
    return rng.integers(0, values, count)


def _power(rng: np.random.Generator, count: int, values: int) -> NDArray[np.int64]:
    """Number k with a probability ~ k^-0.6."""
    return np.minimum((rng.random(count) ** 2.5 * values).astype(np.int64), values - 1)


def _mixed(codes: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    return splitmix64(codes.view(np.uint64) ^ np.uint64(salt << 56))


def _digits(codes: NDArray[np.int64], salt: int, length: int) -> NDArray[np.uint8]:
    """Hexadecimal digits for each code, ``[codes, length]``; of other codes, others."""
    words, state = [], _mixed(codes, salt)
    for _ in range(-(-length // 16)):
        words.append(_DIGITS[state.view(np.uint8)].view(np.uint8).reshape(len(codes), 16))
        state = splitmix64(state)
    return np.concatenate(words, axis=1)[:, :length]


def _hexadecimal(codes: NDArray[np.int64], salt: int, length: int, least: int | None = None) -> pa.Array:
    """Texts of so many digits, or of ``least`` to so many."""
    digits = _digits(codes, salt, length)
    if least is None:
        return _texts(digits, np.full(len(codes), length))
    lengths = (least + _mixed(codes, salt + 100) % np.uint64(length - least + 1)).astype(np.int64)
    return _texts(digits, lengths)


def _uuids(codes: NDArray[np.int64], salt: int) -> pa.Array:
    digits = np.insert(_digits(codes, salt, 32), [8, 12, 16, 20], ord("-"), axis=1)
    return _texts(digits, np.full(len(codes), 36))


def _texts(characters: NDArray[np.uint8], lengths: NDArray[np.int64]) -> pa.Array:
    bounds = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    data = characters[np.arange(characters.shape[1]) < lengths[:, None]]
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(bounds), pa.py_buffer(data))

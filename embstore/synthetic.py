"""Generated click logs whose best answer is known.

Every row's click probability is a function of what the row shows, so the AUC of the best possible model (Bayes AUC)
can be computed and a trained model be judged by its distance to it, on any number of rows and without any download:

    logit = bias + user + item + category + country + hour + weekday + device           one effect per value
          + taste[cluster of user, category of item]                                    low-rank user x item
          + rhythm[device, hour] + mean(effect of tags)                                 interaction, multivalued
          + f(price) + g(age) + h(clicks_before)                                        dense; a null adds nothing

Users and items are drawn from Zipf laws; every second item moves up the popularity ranks a little each day, until
it leaves the head. Rows come in chunks; chunk i depends on (settings, i) alone, so any division of the work gives
the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError
from embstore.logs import ParquetLog
from embstore.metrics import auc
from embstore.schema import Dense, Feature, Schema

CHUNK_ROWS = 65_536  # rows generated together, and rows of a Parquet row group
DEVICES = ("phone", "tablet", "desktop", "tv")
COUNTRIES = ("DE", "US", "FR", "GB", "PL", "IT", "ES", "NL", "TR", "IN", "BR", "JP", "SE", "AT", "CZ", "CA")
CATEGORIES = (
    *("arts", "books", "cars", "fashion", "finance", "food", "games", "garden", "health"),
    *("home", "jobs", "movies", "music", "news", "pets", "science", "sport", "travel"),
)
TAGS = tuple(f"tag{number:02d}" for number in range(60))
CLUSTERS = 4
NULLABLE = ("device", "country", "tags", "price", "age")

_DAY_US = 86_400_000_000
_HOUR_SHARE = np.array([2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 7, 8, 8, 7, 7, 8, 9, 11, 13, 14, 13, 9, 5], dtype=np.float64)
# Streams of random numbers; a new kind of draw takes a new number.
_WORLD, _ROWS, _CALIBRATION = range(3)


@dataclass(frozen=True, kw_only=True)
class _Codes:
    """Some rows as codes into the tables of ``_World``; -1 (NaN for price) is null."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time_us: NDArray[np.int64]
    device: NDArray[np.int64]
    country: NDArray[np.int64]
    price: NDArray[np.float64]
    age: NDArray[np.int64]
    clicks_before: NDArray[np.int64]
    tag: NDArray[np.int64]  # values of all rows, one after the other
    tag_count: NDArray[np.int64]  # values per row


class _World:
    """The users, the items and the effect of each value: drawn once from the seed."""

    def __init__(self, log: SyntheticLog) -> None:
        rng = _generator(log.seed, _WORLD)
        users, items, s = log.users, log.items, log.signal

        def effect(scale: float, *shape: int) -> NDArray[np.float64]:
            values = rng.normal(0.0, s * scale, shape)
            values[-1] = 0.0  # code -1: null
            return values

        self.user_cdf = _zipf_cdf(users, log.user_exponent)
        self.item_cdf = _zipf_cdf(items, log.item_exponent)
        self.country_cdf = _zipf_cdf(len(COUNTRIES), 1.0)
        self.tag_cdf = _zipf_cdf(len(TAGS), 0.8)
        self.user_country = _draw(self.country_cdf, rng, users)
        self.user_device = rng.choice(len(DEVICES), users, p=(0.55, 0.1, 0.3, 0.05))
        self.user_age = np.clip(rng.normal(38, 13, users), 16, 80).astype(np.int64)
        self.user_activity = rng.gamma(1.5, 6.0, users)
        # Most users share the taste of their country, so part of the interaction shows without knowing the user.
        usual = rng.integers(0, CLUSTERS, len(COUNTRIES))[self.user_country]
        self.user_cluster = np.where(rng.random(users) < 0.8, usual, rng.integers(0, CLUSTERS, users))
        self.item_category = rng.integers(0, len(CATEGORIES), items)
        self.item_price = np.exp(rng.normal(3.0, 0.8, items))

        self.user = effect(0.35, users + 1)
        self.item = effect(0.5, items + 1)
        self.category = effect(0.4, len(CATEGORIES) + 1)
        self.country = effect(0.35, len(COUNTRIES) + 1)
        self.device = effect(0.3, len(DEVICES) + 1)
        self.weekday = effect(0.1, 8)
        self.tag = effect(0.9, len(TAGS) + 1)
        self.taste = effect(0.7, CLUSTERS + 1, len(CATEGORIES))
        hour = np.arange(24)
        self.hour = s * 0.3 * np.cos(2 * np.pi * (hour - 20) / 24)
        peak = np.array([21.0, 7.0, 12.0, 0.0])  # by device
        self.rhythm = np.zeros((len(DEVICES) + 1, 24))
        self.rhythm[:-1] = s * 0.6 * np.cos(2 * np.pi * (hour - peak[:, None]) / 24)
        self.signal = s
        # Ids are one-to-one images of codes (an odd factor, modulo a power of two) that look like ids.
        self.user_ids = pa.array([f"u{(code * 0x9E3779B1 + 0x51ED27) % 2**32:08x}" for code in range(users)])
        self.item_ids = (np.arange(items, dtype=np.int64) * 0x2545F491 + 0x1B873593) % 2**31

    def logits(self, rows: _Codes) -> NDArray[np.float64]:
        """Logits without the bias, float64 ``[B]``."""
        hour = rows.time_us % _DAY_US // 3_600_000_000
        weekday = (rows.time_us // _DAY_US + 3) % 7  # 1 January 1970 was a Thursday
        category = self.item_category[rows.item]
        owner = np.repeat(np.arange(len(rows.user)), rows.tag_count)
        tags = np.bincount(owner, weights=self.tag[rows.tag], minlength=len(rows.user))
        price = np.where(np.isnan(rows.price), 0.0, -0.7 * np.tanh(np.log(np.nan_to_num(rows.price, nan=1.0)) - 3.0))
        age = np.where(rows.age < 0, 0.0, 0.4 * np.cos((rows.age - 30) / 12.0))
        clicks = 0.2 * np.log1p(rows.clicks_before)
        return (
            self.user[rows.user]
            + self.item[rows.item]
            + self.category[category]
            + self.country[rows.country]
            + self.device[rows.device]
            + self.hour[hour]
            + self.weekday[weekday]
            + self.taste[self.user_cluster[rows.user], category]
            + self.rhythm[rows.device, hour]
            + tags / np.maximum(rows.tag_count, 1)
            + self.signal * (price + age + clicks)
        )


@dataclass(frozen=True, kw_only=True)
class SyntheticLog:
    """A click log that is generated on demand, and the truth behind it.

    Args:
        rows: of the whole log, spread over ``days``.
        days: of the log; the defaults make 70,000 rows a day, meant as a week to train on and a day to test on.
        users, items: how many there are.
        seed: of everything drawn.
        start: midnight (UTC) of the first day.
        base_rate: the mean click probability.
        signal: factor on all effects; 0 makes clicks a coin toss, larger values raise the Bayes AUC.
        drift: share of the changing items that enter the head of the popularity ranks each day.
        null_share: share of nulls in each of ``NULLABLE``.
        user_exponent, item_exponent: of the Zipf laws.

    Raises:
        ConfigError: a setting out of range.
    """

    rows: int = 560_000
    days: int = 8
    users: int = 2_000
    items: int = 2_000
    seed: int = 0
    start: datetime = datetime(2025, 1, 6)
    base_rate: float = 0.22
    signal: float = 1.0
    drift: float = 0.02
    null_share: float = 0.03
    user_exponent: float = 0.7
    item_exponent: float = 0.9

    def __post_init__(self) -> None:
        for name, least in (
            ("rows", 1),
            ("days", 1),
            ("users", 1),
            ("items", 2),
            ("seed", 0),
            ("signal", 0),
            ("drift", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"synthetic log: {name}", expected=f"{least} or more", found=str(getattr(self, name)))
        if not 0 < self.base_rate < 1:
            raise ConfigError("synthetic log: base_rate", expected="between 0 and 1", found=str(self.base_rate))
        if not 0 <= self.null_share <= 1:
            raise ConfigError("synthetic log: null_share", expected="0 to 1", found=str(self.null_share))

    @cached_property
    def _world(self) -> _World:
        return _World(self)

    @cached_property
    def _start_us(self) -> int:
        return int(np.datetime64(self.start, "us").astype(np.int64))

    @cached_property
    def bias(self) -> float:
        """The constant of the logit, found once so that the mean probability is ``base_rate``."""
        row = np.linspace(0, self.rows - 1, CHUNK_ROWS).astype(np.int64)
        rest = self._world.logits(self._draw(_generator(self.seed, _CALIBRATION), row))
        low, high = -50.0, 50.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if _sigmoid(rest + middle).mean() < self.base_rate else (low, middle)
        return round(low, 6)

    def likeness(self) -> dict[str, dict[str, float]]:
        """By category and category, how much the same users like both: the cosine of their effects on the clusters."""
        taste = self._world.taste[:-1].T
        unit = taste / np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-12)
        return {
            name: dict(zip(CATEGORIES, row.tolist(), strict=True))
            for name, row in zip(CATEGORIES, unit @ unit.T, strict=True)
        }

    def schema(self) -> Schema:
        """What the columns mean: all features once, hour and weekday from the timestamp, label ``click``."""
        return Schema(
            label="click",
            group="user_id",
            features=(
                *(Feature(name=name) for name in ("user_id", "item_id", "category", "device", "country")),
                Feature(name="tags", pooling="mean", max_length=5),
                Feature(name="hour", column="timestamp", transform="hour"),
                Feature(name="weekday", column="timestamp", transform="weekday"),
            ),
            dense=(Dense(name="price"), Dense(name="age", scale="linear"), Dense(name="clicks_before")),
        )

    def day_rows(self, first: int, stop: int | None = None) -> range:
        """The rows of days ``first`` to ``stop`` (not included; one day when ``None``), counted from 0."""
        stop = first + 1 if stop is None else stop
        if not 0 <= first < stop <= self.days:
            raise ConfigError(
                "synthetic log: days", expected=f"0 <= first < stop <= {self.days}", found=f"{first}, {stop}"
            )
        return range(-(-first * self.rows // self.days), -(-stop * self.rows // self.days))

    def tables(self, rows: range | None = None) -> Iterator[pa.Table]:
        """Consecutive ``rows`` (all when ``None``), in tables of at most ``CHUNK_ROWS``."""
        rows = range(self.rows) if rows is None else rows
        if rows.step != 1 or rows.start < 0 or rows.stop > self.rows:
            raise ConfigError("synthetic log: rows", expected=f"a range within 0 to {self.rows}", found=str(rows))
        for chunk in range(rows.start // CHUNK_ROWS, -(-rows.stop // CHUNK_ROWS)):
            first = chunk * CHUNK_ROWS
            start, stop = max(rows.start, first), min(rows.stop, first + CHUNK_ROWS)
            if start < stop:
                yield self._chunk(chunk).slice(start - first, stop - start)

    def table(self, rows: range | None = None) -> pa.Table:
        """Consecutive ``rows`` (all when ``None``) in memory."""
        return pa.concat_tables(list(self.tables(rows)) or [self._chunk(0).slice(0, 0)])

    def write(
        self,
        directory: str | Path,
        *,
        rows: range | None = None,
        rows_per_file: int = 16 * CHUNK_ROWS,
        compression: str = "zstd",
        progress: Callable[[int], object] | None = None,
    ) -> list[Path]:
        """Write ``rows`` (all when ``None``) as ``part-00000.parquet`` and so on, with one chunk in memory at a time.

        A file appears when it is whole. Writing again replaces files of the same name.

        Args:
            directory: made when absent; several writers need folders of their own (logs are searched below a folder).
            rows: e.g. ``day_rows(0, 7)``.
            rows_per_file: at most.
            compression: any codec of Parquet.
            progress: called with the number of rows after each chunk written.

        Returns:
            The files, in order.

        Raises:
            ConfigError: a setting out of range, or the folder holds Parquet files that this call wouldn't replace.
        """
        rows = range(self.rows) if rows is None else rows
        if rows_per_file < 1:
            raise ConfigError("synthetic log: rows_per_file", expected="1 or more", found=str(rows_per_file))
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        starts = range(rows.start, rows.stop, rows_per_file)
        paths = [directory / f"part-{number:05d}.parquet" for number in range(len(starts))]
        strangers = sorted(set(directory.glob("*.parquet")) - set(paths))
        if strangers:
            raise ConfigError(
                f"{directory} would mix logs",
                expected="no Parquet files but the ones to be written",
                found=", ".join(path.name for path in strangers[:3]),
                do="empty the folder or name another",
            )
        for path, start in zip(paths, starts, strict=True):
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                with pq.ParquetWriter(partial, _ARROW, compression=compression) as writer:
                    for table in self.tables(range(start, min(start + rows_per_file, rows.stop))):
                        writer.write_table(table, row_group_size=CHUNK_ROWS)
                        if progress is not None:
                            progress(table.num_rows)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return paths

    def true_logits(self, source: _Source) -> NDArray[np.float64]:
        """The true logit of each row, float64 ``[N]``: of a range of this log, a table, or files of it.

        Raises:
            DataError: rows of another log (an unknown user or item, a missing id).
        """
        parts = [self._world.logits(self._codes(table)) + self.bias for table in self._read(source)]
        return np.concatenate(parts) if parts else np.empty(0)

    def probabilities(self, source: _Source) -> NDArray[np.float64]:
        """The true click probability of each row, float64 ``[N]``."""
        return _sigmoid(self.true_logits(source))

    def bayes_auc(self, source: _Source) -> float:
        """The AUC of the true probabilities on the labels drawn: what no model can be expected to beat."""
        scores, labels = [np.empty(0)], [np.empty(0)]
        for table in self._read(source):
            scores.append(self._world.logits(self._codes(table)))
            labels.append(table["click"].to_numpy().astype(np.float64))
        return auc(np.concatenate(labels), np.concatenate(scores))

    def expected_auc(self, source: _Source) -> float:
        """The Bayes AUC over all labels these rows might have drawn (the ratio of expected pairs): no label noise."""
        score = self.true_logits(source)
        p = _sigmoid(score)
        # Each row is a click with weight p and none with weight 1 - p; a row never meets itself, so those ties are
        # taken out.
        both = auc(np.repeat([1.0, 0.0], len(p)), np.tile(score, 2), weight=np.concatenate([p, 1 - p]))
        pairs, own = p.sum() * (1 - p).sum(), (p * (1 - p)).sum()
        return float((both * pairs - own / 2) / (pairs - own))

    def _read(self, source: _Source) -> Iterator[pa.Table]:
        if isinstance(source, range):
            return self.tables(source)
        if isinstance(source, pa.Table):
            return iter([source])
        return (table for table, _ in ParquetLog(source, self.schema()).tables_from())

    def _draw(self, rng: np.random.Generator, row: NDArray[np.int64]) -> _Codes:
        world, n = self._world, len(row)
        day, within = row * self.days // self.rows, (row * self.days % self.rows) / self.rows
        hours = np.interp(within, np.cumsum([0, *_HOUR_SHARE]) / _HOUR_SHARE.sum(), np.arange(25))
        time_us = self._start_us + day * _DAY_US + (hours * 3_600_000_000).astype(np.int64)
        user = _draw(world.user_cdf, rng, n)
        rank = _draw(world.item_cdf, rng, n)
        # Items of even number keep their rank, those of odd number take turns: the one at a rank moves up a step a day.
        odd = self.items // 2
        turned = 2 * ((rank // 2 + day * max(1, round(self.drift * odd)) * (self.drift > 0)) % odd) + 1
        item = np.where(rank % 2 == 1, turned, rank)
        at_home, usual_device = rng.random(n) < 0.95, rng.random(n) < 0.8
        tag_count = np.where(self._null(rng, n), 0, rng.binomial(5, 0.45, n))
        # Distinct tags near the category's: steps of 1 to 6 over 60 tags can't come round within five.
        place = np.arange(5) < tag_count[:, None]
        first = _draw(world.tag_cdf, rng, n) + 3 * world.item_category[item]
        tags = (first[:, None] + np.arange(5) * rng.integers(1, 7, n)[:, None]) % len(TAGS)
        price = np.round(world.item_price[item] * np.exp(rng.normal(0.0, 0.15, n)), 2)
        return _Codes(
            user=user,
            item=item,
            time_us=time_us,
            device=np.where(
                self._null(rng, n),
                -1,
                np.where(usual_device, world.user_device[user], rng.integers(0, len(DEVICES), n)),
            ),
            country=np.where(
                self._null(rng, n),
                -1,
                np.where(at_home, world.user_country[user], rng.integers(0, len(COUNTRIES), n)),
            ),
            price=np.where(self._null(rng, n), np.nan, np.maximum(price, 0.01)),
            age=np.where(self._null(rng, n), -1, world.user_age[user]),
            clicks_before=(rng.standard_exponential(n) * world.user_activity[user]).astype(np.int64),
            tag=tags[place],
            tag_count=tag_count,
        )

    def _null(self, rng: np.random.Generator, n: int) -> NDArray[np.bool_]:
        return rng.random(n) < self.null_share

    def _chunk(self, chunk: int) -> pa.Table:
        rng = _generator(self.seed, _ROWS, chunk)
        rows = self._draw(rng, np.arange(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, self.rows)))
        click = rng.random(len(rows.user)) < _sigmoid(self._world.logits(rows) + self.bias)
        world = self._world
        offsets = np.concatenate([[0], np.cumsum(rows.tag_count)]).astype(np.int32)
        columns = {
            "click": pa.array(click.astype(np.int8)),
            "timestamp": pa.array(rows.time_us).cast(pa.timestamp("us")),
            "user_id": world.user_ids.take(pa.array(rows.user)),
            "item_id": pa.array(world.item_ids[rows.item]),
            "category": _names(CATEGORIES, world.item_category[rows.item]),
            "device": _names(DEVICES, rows.device),
            "country": _names(COUNTRIES, rows.country),
            "tags": pa.ListArray.from_arrays(pa.array(offsets), _names(TAGS, rows.tag)),
            "price": pa.array(rows.price, mask=np.isnan(rows.price)),
            "age": pa.array(rows.age.astype(np.int32), mask=rows.age < 0),
            "clicks_before": pa.array(rows.clicks_before.astype(np.int32)),
        }
        return pa.table(columns, schema=_ARROW)

    def _codes(self, table: pa.Table) -> _Codes:
        """The codes that a table of this log shows."""
        world = self._world
        item_sorted, item_code = self._item_index
        ids = _whole(table, "item_id").fill_null(-1).to_numpy()
        place = np.minimum(np.searchsorted(item_sorted, ids), len(item_sorted) - 1)
        user = _index(_whole(table, "user_id"), world.user_ids)
        if (user < 0).any() or (item_sorted[place] != ids).any():
            raise DataError("these rows are of another log", expected=f"users and items of {self}", found="unknown ids")
        tags = _whole(table, "tags")
        return _Codes(
            user=user,
            item=item_code[place],
            time_us=_whole(table, "timestamp").cast(pa.int64()).to_numpy(),
            device=_index(_whole(table, "device"), pa.array(DEVICES)),
            country=_index(_whole(table, "country"), pa.array(COUNTRIES)),
            price=_whole(table, "price").to_numpy(zero_copy_only=False),
            age=_whole(table, "age").fill_null(-1).to_numpy().astype(np.int64),
            clicks_before=_whole(table, "clicks_before").to_numpy().astype(np.int64),
            tag=_index(pc.list_flatten(tags), pa.array(TAGS)),
            tag_count=pc.list_value_length(tags).fill_null(0).to_numpy().astype(np.int64),
        )

    @cached_property
    def _item_index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self._world.item_ids)
        return self._world.item_ids[order], order


_Source: TypeAlias = range | pa.Table | str | Path | Sequence[str | Path]

_ARROW = pa.schema(
    {
        "click": pa.int8(),
        "timestamp": pa.timestamp("us"),
        "user_id": pa.string(),
        "item_id": pa.int64(),
        "category": pa.string(),
        "device": pa.string(),
        "country": pa.string(),
        "tags": pa.list_(pa.string()),
        "price": pa.float64(),
        "age": pa.int32(),
        "clicks_before": pa.int32(),
    }
)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _zipf_cdf(count: int, exponent: float) -> NDArray[np.float64]:
    # The shift keeps the first few values from taking most of the rows (Zipf-Mandelbrot).
    share = (np.arange(count) + 10.0) ** -exponent
    return np.cumsum(share) / share.sum()


def _draw(cdf: NDArray[np.float64], rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(cdf, rng.random(n)), len(cdf) - 1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-x))


def _names(names: Sequence[str], code: NDArray[np.int64]) -> pa.Array:
    return pa.array(names).take(pa.array(code, mask=code < 0))


def _index(column: pa.Array, names: pa.Array) -> NDArray[np.int64]:
    return pc.index_in(column, value_set=names).fill_null(-1).to_numpy().astype(np.int64)


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

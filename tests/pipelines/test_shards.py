"""A table shared out to shards answers as one that is mapped whole, bit for bit; the shards are in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
from shop import FEATURES, RECORDS, bundle

from embstore.errors import CorruptVersionError, DeadlineError, LimitError, RequestError, UnavailableError
from embstore.models import build
from embstore.serving.protocol import InferRequest, Limits, OutputTensor, RequestedOutput, Tensor
from embstore.serving.reader import Reader
from embstore.serving.service import infer
from embstore.serving.settings import ServeSettings
from embstore.store import Change, Store, Version, format

pytest.importorskip("ray.serve", exc_type=ImportError)

from embstore.pipelines.shards import DistantReader, PartReader, Shard, Shards, bounds_of, buckets_of


class Response:
    """As Ray Serve's."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def result(self, timeout_s: float) -> Any:
        return self._answer()

    def cancel(self) -> None:
        pass


_watching: list[Shard] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Shards end with their test: what they go on reading of the store would be a request of another test's."""
    yield
    while _watching:
        _watching.pop().close()


class Handle:
    """Of a shard in this process, that notes what it is asked and may fail first."""

    def __init__(self, shard: Shard, *failures: Exception) -> None:
        self._shard, self._failures = shard, list(failures)
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return _Method(self, name)

    def call(self, name: str, *of: Any) -> Any:
        self.asked.append((name, *of))
        if self._failures:
            raise self._failures.pop(0)
        return asyncio.run(getattr(self._shard, name)(*of))


class _Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self.handle, self.name = handle, name

    def remote(self, *of: Any) -> Response:
        return Response(lambda: self.handle.call(self.name, *of))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With a version of several buckets that is ``production``."""
    monkeypatch.setattr(format, "BUCKET_BYTES", 4096)
    of = Store(tmp_path / "shop")
    of.promote(of.publish(bundle()).id)
    return of


def _handles(store: Store, shards: int) -> list[Handle]:
    settings = ServeSettings(store=str(store.root))
    made = [Shard(settings, shard, shards) for shard in range(shards)]
    _watching.extend(made)
    return [Handle(shard) for shard in made]


def _distant(version: Version, handles: list[Handle]) -> DistantReader:
    reader = DistantReader(version, build, Shards(handles))
    reader.load()
    return reader


def _whole(version: Version) -> Reader:
    reader = Reader(version, build)
    reader.load()
    return reader


def _request(outputs: tuple[str, ...] = (), deadline: float | None = None) -> InferRequest:
    users, tags = ["ann", "bob", "cat"], ["a", "b", "c", "a"]
    inputs = [
        Tensor("user", "BYTES", (3,), users),
        Tensor("item", "INT64", (3,), [1, -7, 2**62]),
        Tensor("tags", "BYTES", (4,), tags),
        Tensor("tags.lengths", "INT64", (3,), [3, 0, 1]),
        Tensor("country", "BYTES", (3,), ["de", None, "never seen"]),
        Tensor("hour", "INT64", (3,), [0, 23, 5]),
        Tensor("price", "FP32", (3,), [1.5, 0.0, -3.0]),
        Tensor("age", "FP32", (3,), [33.0, 41.0, 17.0]),
    ]
    of = [RequestedOutput(name) for name in outputs]
    return InferRequest(model="shop", inputs=inputs, outputs=of, deadline=deadline)


def _raw(outputs: Any) -> list[tuple[str, bytes]]:
    def one(of: OutputTensor) -> tuple[str, bytes]:
        return of.name, bytes(of.raw())

    return [one(of) for of in outputs]


def test_shards_share_the_buckets_out(store: Store) -> None:
    layout = store.open("production").table.layout
    for shards in (1, 2, 3, layout.buckets):
        ranges = [buckets_of(layout, shard, shards) for shard in range(shards)]
        assert [number for of in ranges for number in of] == list(range(layout.buckets))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
        bounds = bounds_of(layout, shards).tolist()
        assert bounds == [of.start * layout.bucket_rows for of in ranges] + [layout.rows]


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16", "float64", "int8", "int4"])
def test_every_encoding_is_as_unsharded(store: Store, encoding: str, shards: int) -> None:
    version = store.publish(bundle(seed=1), encoding=encoding)
    whole, distant = _whole(version), _distant(version, _handles(store, shards))
    for feature in FEATURES:
        ours, theirs = (of.lookup(feature.name, RECORDS[feature.name]) for of in (distant, whole))
        assert ours.vectors_BW.tobytes() == theirs.vectors_BW.tobytes()
        assert ours.status_N.tobytes() == theirs.status_N.tobytes()
    assert distant.embed(RECORDS).tobytes() == whole.embed(RECORDS).tobytes()
    assert distant.score(RECORDS).tobytes() == whole.score(RECORDS).tobytes()
    for outputs in ((), ("embedding", "score", "user.embedding", "tags.status")):
        ours, theirs = (infer(_request(outputs), of, Limits()) for of in (distant, whole))
        assert _raw(ours.outputs) == _raw(theirs.outputs)


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_deltas_are_as_unsharded(store: Store, encoding: str, shards: int) -> None:
    base = store.publish(bundle(seed=1), encoding=encoding)
    first = store.publish(bundle(seed=2), change=Change(base=base, touched=torch.arange(0, 1000, 7)), encoding=encoding)
    delta = store.publish(
        bundle(seed=3), change=Change(base=first, touched=torch.arange(0, 1000, 5)), encoding=encoding
    )
    values = list(range(2000))
    whole, distant = _whole(delta), _distant(delta, _handles(store, shards))
    assert distant.lookup("item", values).vectors_BW.tobytes() == whole.lookup("item", values).vectors_BW.tobytes()
    assert distant.embed(RECORDS).tobytes() == whole.embed(RECORDS).tobytes()


def test_a_request_asks_each_shard_once_for_distinct_rows(store: Store) -> None:
    handles = _handles(store, 3)
    reader = _distant(store.open("production"), handles)
    for handle in handles:
        handle.asked.clear()
    infer(_request(("user.embedding", "item.embedding", "embedding", "score")), reader, Limits())
    rows = [row for handle in handles for _, _, rows_R in handle.asked for row in rows_R.tolist()]
    assert all(len(handle.asked) == 1 for handle in handles)
    assert len(rows) > 8
    assert rows == sorted(set(rows))


def test_rows_that_were_not_read_ahead_are_asked_for(store: Store) -> None:
    reader = _distant(store.open("production"), _handles(store, 3))
    item, user = (reader.feature(name) for name in ("item", "user"))
    near = reader.ahead({"item": reader.tokens(item, [1, 2])})
    for feature, values in ((item, [2, 1, 1]), (item, [3, 4]), (user, ["ann"]), (item, [])):
        expected = reader.lookup(feature.name, values).vectors_BW
        assert near.lookup(feature.name, values).vectors_BW.tobytes() == expected.tobytes()


def test_a_shard_reads_its_own_buckets_only(store: Store) -> None:
    version = store.open("production")
    last = version.folder / "table" / f"bucket-{version.table.layout.buckets - 1:05}.safetensors"
    damaged = bytearray(last.read_bytes())
    damaged[-1] ^= 1
    last.write_bytes(damaged)
    PartReader(store.open("production"), 0, 2).load()
    with pytest.raises(CorruptVersionError):
        PartReader(store.open("production"), 1, 2).load()


def test_rows_of_another_shard_are_refused(store: Store) -> None:
    reader = PartReader(store.open("production"), 0, 2)
    reader.load()
    with pytest.raises(RequestError, match="rows of a shard; expected 0 to"):
        reader.gather(np.array([0, 1003]))


def test_a_version_is_answered_from_after_another_is_promoted(store: Store) -> None:
    handles, old = _handles(store, 2), store.open("production")
    reader, whole = _distant(old, handles), _whole(old)
    for seed in range(1, 8):  # more than shards keep
        newer = store.publish(bundle(seed=seed))
        store.promote(newer.id)
        assert _distant(newer, handles).embed(RECORDS).tobytes() == _whole(newer).embed(RECORDS).tobytes()
        assert reader.embed(RECORDS).tobytes() == whole.embed(RECORDS).tobytes()


def test_a_shard_that_died_is_asked_again(store: Store) -> None:
    from ray.exceptions import RayActorError

    handles = _handles(store, 2)
    version = store.open("production")
    _distant(version, handles)
    again = [Handle(handle._shard, RayActorError()) for handle in handles]
    reader = DistantReader(version, build, Shards(again))
    assert reader.embed(RECORDS).tobytes() == _whole(version).embed(RECORDS).tobytes()
    assert [len(handle.asked) for handle in again] == [2, 2]
    gone = [handles[0], Handle(handles[1]._shard, *[RayActorError() for _ in range(9)])]
    with pytest.raises(UnavailableError, match=r"shard 1; expected rows; found none"):
        DistantReader(version, build, Shards(gone)).embed(RECORDS)


def test_a_shard_that_is_late(store: Store) -> None:
    handles = _handles(store, 2)
    version = store.open("production")
    late = [handles[0], Handle(handles[1]._shard, *[TimeoutError() for _ in range(9)])]
    reader = DistantReader(version, build, Shards(late))
    with pytest.raises(UnavailableError, match="rows in 5 s"):
        infer(_request(), reader, Limits())
    with pytest.raises(DeadlineError, match="none of shard 1"):
        infer(_request(deadline=monotonic() + 60), reader, Limits())


def test_what_a_shard_says_is_wrong_is_said_in_its_words(store: Store) -> None:
    from ray.exceptions import RayTaskError

    version, handles = store.open("production"), _handles(store, 2)
    cause = CorruptVersionError("table/bucket-00000.safetensors", expected="sha256 1", found="2")
    error = RayTaskError("gather", "Traceback (most recent call last): ...", cause).as_instanceof_cause()
    wrong = [Handle(handles[0]._shard, error), handles[1]]
    with pytest.raises(CorruptVersionError) as raised:
        DistantReader(version, build, Shards(wrong)).embed(RECORDS)
    assert str(raised.value) == str(cause)


def test_limits_come_before_rows(store: Store) -> None:
    handles = _handles(store, 2)
    reader = _distant(store.open("production"), handles)
    for handle in handles:
        handle.asked.clear()
    with pytest.raises(LimitError, match="a response of at most 64 bytes"):
        infer(_request(), reader, Limits(output_bytes=64))
    assert not any(handle.asked for handle in handles)

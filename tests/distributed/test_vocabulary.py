"""Values counted by ranks, each a part of the log. The judge: one process."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cases import collect, train
from ranks import Ranks
from runs import config, write_logs

from embstore.distributed import ALONE
from embstore.feature_values import FeatureValues
from embstore.store import Store
from embstore.vocabulary import Vocabulary


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_count_what_one_process_does(ranks: Ranks, world: int, tmp_path: Path) -> None:
    """Integers of two widths, text, lists, a column without values; fewer row groups than ranks."""
    (tmp_path / "log").mkdir()
    for name, kind, of in (("a", pa.int32(), [1, 2, None]), ("b", pa.int64(), [2, 2**40, -1])):
        tags = pa.array([["x", "y"], None, ["x"]], pa.list_(pa.string()))
        columns = {"item": pa.array(of, kind), "tags": tags, "user": ["é", "", name], "none": pa.nulls(3)}
        pq.write_table(pa.table(columns), tmp_path / "log" / f"{name}.parquet")
    asked = {"log": str(tmp_path / "log"), "features": ["item", "tags", "user", "none"]}
    first, *others = ranks.run(world, "collect", **asked)
    assert first == collect(ALONE, **asked)
    assert first["item"] == {"kind": "int64", "value": [-1, 1, 2, 2**40], "count": [1, 1, 2, 1], "kept": [True] * 4}
    assert others == [{}] * (world - 1)


def test_a_log_that_one_rank_can_not_read_is_an_error_on_all(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for name in "ab":
        pq.write_table(pa.table({"user": [name] * 5000}), tmp_path / "log" / f"{name}.parquet", compression="none")
    path = tmp_path / "log" / "b.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    for answer in ranks.answers(2, "collect", log=str(tmp_path / "log"), features=["user"]):
        assert answer["error"] == "LogError"
        assert "b.parquet" in answer["text"]


def test_ranks_publish_the_vocabulary_that_one_process_does(ranks: Ranks, tmp_path: Path) -> None:
    logs = write_logs(tmp_path / "logs")

    def settings(folder: Path) -> dict[str, object]:
        of = config(logs, folder / "run")
        publish = {"store": str(folder / "store"), "every_rows": 3000, "whole_every": 3, "vocabulary": True}
        return {**of, "training": {**of["training"], "epochs": 1}, "publish": publish}

    train(ALONE, settings(tmp_path / "alone"))
    ranks.run(2, "train", config=settings(tmp_path / "many"))
    alone, many = (Store(tmp_path / name / "store") for name in ("alone", "many"))
    one, two = ([store.open(info.id) for info in store.versions()] for store in (alone, many))
    assert len(one) == len(two) >= 2
    for ours, theirs in zip(one, two, strict=True):
        files = [{name: of.files[name] for name in of.files if name.startswith("vocabulary/")} for of in (ours, theirs)]
        assert files[0] == files[1]
        assert len(files[0]) == (4 if ours.delta is None else 0)
        assert ours.vocabulary_info == theirs.vocabulary_info
        assert ours.vocabulary_info.keys() == {"user_id", "item_id", "category", "tags"}
        many.verify(theirs.id)


def test_ranks_honour_a_vocabulary_as_on_a_log_whose_values_were_replaced(ranks: Ranks, tmp_path: Path) -> None:
    """A text whose hash is the pruned token stands for what was dropped: of an exact feature, and in lists."""
    logs = write_logs(tmp_path / "logs")
    dropped, vocabulary = {}, {}
    whole = pq.read_table(logs / "train", columns=["category", "tags"])
    for name, column in (("category", whole["category"]), ("tags", pc.list_flatten(whole["tags"]))):
        values = sorted(set(column.to_pylist()) - {None})
        dropped[name] = set(values[::2])
        vocabulary[name] = FeatureValues.of(name, values, kept=[value not in dropped[name] for value in values])
    Vocabulary(vocabulary).to_parquet(tmp_path / "vocabulary")
    for path in list(logs.rglob("*.parquet")):
        table = pq.read_table(path)
        for name, gone in dropped.items():
            at = table.column_names.index(name)
            column = pa.array([_replaced(value, gone) for value in table[name].to_pylist()], table[name].type)
            table = table.set_column(at, name, column)
        target = tmp_path / "by-hand" / path.relative_to(logs)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target, row_group_size=pq.read_metadata(path).row_group(0).num_rows)
    honouring = config(logs, tmp_path / "run", vocabulary=str(tmp_path / "vocabulary"))
    by_hand = config(tmp_path / "by-hand", tmp_path / "judge")
    ours, theirs = (ranks.run(2, "train", config=settings) for settings in (honouring, by_hand))
    for one, other in zip(ours, theirs, strict=True):
        assert one["digest"] == other["digest"]
        assert one["result"]["valid"] == other["result"]["valid"]


def _replaced(value: object, gone: set[str]) -> object:
    if isinstance(value, list):
        return [_replaced(each, gone) for each in value]
    return "embstore\0pruned" if value in gone else value

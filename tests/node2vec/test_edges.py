"""Graphs of logs: judged by dictionaries, and the same however the log is cut."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.config import parse
from embstore.errors import ConfigError, DataError, EmbstoreError, GraphError, LogError, SchemaError
from embstore.node2vec import edges
from embstore.node2vec.edges import GraphSettings, build_graph
from embstore.node2vec.graph import Graph

Named = dict[tuple[Any, Any], float]


def named(graph: Graph) -> Named:
    """Its entries by what their ends are."""
    assert graph.nodes is not None
    names = [(feature, value) for feature, values in graph.nodes.items() for value in values.to_pylist()]
    weights = np.ones(len(graph.indices_E)) if graph.weights_E is None else graph.weights_E
    ends = zip(graph.sources().tolist(), graph.indices_E.tolist(), weights.tolist(), strict=True)
    return {(names[u], names[v]): weight for u, v, weight in ends}


def judged(how: GraphSettings, log: Sequence[dict[str, Any]]) -> Named:
    """What the graph of a log of plain rows must have."""
    times = [row[how.decay.time] for row in log if row[how.decay.time] is not None] if how.decay else []

    def weight(row: dict[str, Any]) -> float | None:
        out = 1.0 if how.weight is None else row[how.weight]
        if how.decay is not None and out is not None:
            at = row[how.decay.time]
            now = how.decay.now if how.decay.now is not None else max(times, default=0)
            out = None if at is None else out * 0.5 ** (max(now - at, 0) / float(how.decay.half_life))
        return out or None

    def elements(value: Any) -> list[Any]:
        return [one for one in (value if isinstance(value, list) else [value]) if one is not None]

    sums: dict[Any, list[float]] = defaultdict(list)
    for first, second in how.pairs:
        for row in log:
            for a in elements(row[first]):
                for b in elements(row[second]):
                    sums[(first, a), (second, b)].append(weight(row) or 0.0)
    for session in how.sessions:
        groups = defaultdict(list)
        for number, row in enumerate(log):
            key = number if session.by is None else row[session.by]
            at = 0 if session.time is None else row[session.time]
            if key is not None and at is not None and weight(row):
                groups[key] += [(at, number, one, weight(row)) for one in elements(row[session.column])]
        for group in groups.values():
            group.sort(key=lambda entry: entry[:2])
            for i, (at, _, a, _) in enumerate(group):
                for j in range(i + 1, len(group)):
                    then, _, b, later = group[j]
                    if session.steps is not None and j - i > session.steps:
                        break
                    if session.window is not None and then - at > float(session.window):
                        break
                    if a != b:
                        sums[(session.column, a), (session.column, b)].append(later or 0.0)
    total: dict[Any, list[float]] = defaultdict(list)
    for (a, b), parts in sums.items():
        for key in [(a, b)] if how.directed else [(a, b), (b, a)]:
            total[key] += parts
    done = {key: math.fsum(parts) for key, parts in total.items()}
    return {key: float(np.float32(w)) for key, w in done.items() if w > 0 and w >= how.min_weight}


def built(how: GraphSettings, tables: Sequence[pa.Table], *, parts: int = 1, order: int = 1) -> Graph:
    """As many workers would build it: each block alone, in any order, sessions and rows in parts."""
    blocks = list(zip(np.cumsum([0] + [table.num_rows for table in tables]).tolist(), tables, strict=False))[::order]
    survey = edges.joined([edges.survey_of(table, how, first_row=first) for first, table in blocks])
    found = [edges.pair_edges(table, how, survey, first_row=first) for first, table in blocks if how.pairs]
    for number in range(len(how.sessions)):
        rows = [edges.session_rows(table, number, how, survey, first_row=first) for first, table in blocks]
        cut = [edges.by_session(of, parts) for of in rows]
        found += [edges.session_edges([of[part] for of in cut], number, how) for part in range(parts)]
    bounds = edges.ranges(survey, parts)
    pieces = [edges.by_source(of, bounds, directed=how.directed) for of in found]
    ready = [edges.piece_of([of[k] for of in pieces], how, survey) for k in range(len(bounds) - 1)]
    return edges.assembled(ready, how, survey)


def same(one: Graph, other: Graph) -> bool:
    assert one.nodes is not None
    assert other.nodes is not None
    weights = [np.empty(0) if g.weights_E is None else g.weights_E for g in (one, other)]
    return (
        np.array_equal(one.indptr_N, other.indptr_N)
        and np.array_equal(one.indices_E, other.indices_E)
        and np.array_equal(*weights)
        and list(one.nodes) == list(other.nodes)
        and all(values.equals(other.nodes[name]) for name, values in one.nodes.items())
    )


TYPES = pa.schema(
    {"user": pa.string(), "item": pa.int32(), "tags": pa.list_(pa.string()), "time": pa.int64(), "w": pa.float64()}
)
ROW = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bob", "bobby", "", "é", None]),
        "item": st.sampled_from([-3, 0, 7, 8, 900, None]),
        "tags": st.sampled_from([None, [], ["a"], ["b", "a", None], ["c", "c", "b"]]),
        "time": st.sampled_from([0, 1, 2, 5, 9, 9, 40, None]),
        "w": st.sampled_from([0.1, 0.3, 1.0, 2.5, 1e-3, 1e6, 0.0, None]),
    }
)
HOW = st.builds(
    GraphSettings,
    log=st.just("log"),
    pairs=st.sampled_from([(("user", "item"),), (("item", "user"), ("user", "tags"), ("tags", "item"))]),
    sessions=st.sampled_from(
        [
            (),
            (edges.SessionSettings(column="item", by="user", time="time", window=4),),
            (edges.SessionSettings(column="item", by="user", steps=2), edges.SessionSettings(column="tags", steps=1)),
            (edges.SessionSettings(column="tags", by="item", time="time", window=5, steps=3),),
        ]
    ),
    weight=st.sampled_from([None, "w"]),
    decay=st.sampled_from(
        [None, edges.DecaySettings(time="time", half_life=3), edges.DecaySettings(time="time", half_life=7, now=5)]
    ),
    directed=st.booleans(),
    min_weight=st.sampled_from([0.0, 1.5]),
)


@settings(max_examples=80)
@given(
    how=HOW,
    log=st.lists(ROW, min_size=1, max_size=25),
    cuts=st.lists(st.integers(0, 25), max_size=4),
    parts=st.integers(1, 4),
)
def test_a_graph_is_what_a_dictionary_says_however_the_log_is_cut(
    how: GraphSettings, log: list[dict[str, Any]], cuts: list[int], parts: int
) -> None:
    table = pa.Table.from_pylist(log, schema=TYPES)
    expected = judged(how, log)
    bounds = sorted({0, *(min(cut, len(log)) for cut in cuts), len(log)})
    tables = [table.slice(begin, end - begin) for begin, end in pairwise(bounds)]
    if not expected:
        with pytest.raises(GraphError, match="at least one edge"):
            built(how, [table])
        return
    graph = built(how, [table])
    # Each weight is rounded to 2^-62 of the greatest; the sum of these to float32, as that of the dictionary is.
    found = named(graph)
    assert found.keys() == expected.keys()
    assert all(np.isclose(found[key], expected[key], rtol=1.2e-7, atol=0) for key in expected)
    assert same(graph, built(how, tables, parts=parts))
    assert same(graph, built(how, tables, parts=parts, order=-1))
    assert how.directed or all(found[key] == found[key[::-1]] for key in found)
    assert (graph.degrees() > 0).all() or how.directed
    assert graph.nodes is not None
    used = {end for key in expected for end in key}
    assert used == {(name, value) for name, values in graph.nodes.items() for value in values.to_pylist()}
    for values in graph.nodes.values():
        kept = values.to_pylist()
        keys = [value.encode() if isinstance(value, str) else value for value in kept]
        assert keys == sorted(set(keys))


def write(folder: Path, table: pa.Table, *, files: int = 1, rows: int = 7) -> str:
    folder.mkdir(exist_ok=True)
    bounds = np.linspace(0, table.num_rows, files + 1).astype(int).tolist()
    for number, (begin, end) in enumerate(pairwise(bounds)):
        pq.write_table(table.slice(begin, end - begin), folder / f"part-{number}.parquet", row_group_size=rows)
    return str(folder)


def clicks(rows: int = 300, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    return pa.table(
        {
            "user": pa.array([f"u{n}" for n in draw.integers(0, 20, rows)]).dictionary_encode(),
            "item": pa.array(draw.integers(0, 30, rows), pa.uint16()),
            "time": pa.array(draw.integers(0, 10_000, rows).astype("datetime64[s]")),
            "w": draw.random(rows),
        }
    )


def test_files_and_row_groups_decide_nothing(tmp_path: Path) -> None:
    table, seen = clicks(), []
    how = {"pairs": [["user", "item"]], "weight": "w", "decay": {"time": "time", "half_life": "1h"}}
    how["sessions"] = [{"column": "item", "by": "user", "time": "time", "window": "10m", "steps": 4}]
    one = parse(GraphSettings, {"log": write(tmp_path / "one", table, rows=1000), **how})
    many = parse(GraphSettings, {"log": [write(tmp_path / "many", table, files=3)], **how})
    graph = build_graph(one, progress=seen.append)
    assert sum(seen) == 2 * table.num_rows
    assert same(graph, build_graph(many))
    assert same(graph, built(one, [table]))
    plain = table.set_column(0, "user", table["user"].cast(pa.large_string()))
    plain = plain.set_column(1, "item", plain["item"].cast(pa.int64()))
    assert same(graph, built(one, [plain.slice(0, 100), plain.slice(100)]))


def test_graphs_need_no_torch() -> None:
    code = "import sys, embstore.node2vec.edges; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sessions_sorted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = (edges.SessionSettings(column="item", by="user", time="time", window="20m"),)
    how = GraphSettings(log=write(tmp_path / "log", clicks()), sessions=sessions, weight="w")
    graph = build_graph(how)
    monkeypatch.setattr(edges, "_ROWS", 50)
    monkeypatch.setattr(edges, "_PIECE", 40)
    monkeypatch.setattr("embstore.node2vec.sessions._EDGES", 3)
    monkeypatch.setattr("embstore.node2vec.sums._WAITING", 10)
    assert same(graph, build_graph(how))


def test_lists_that_are_sessions_are_shared_out(tmp_path: Path) -> None:
    table = pa.table({"item": [[row % 7, row % 5] for row in range(400)]})
    how = GraphSettings(log="-", sessions=(edges.SessionSettings(column="item", steps=1),))
    rows = edges.session_rows(table, 0, how, edges.survey_of(table, how))
    parts = edges.by_session(rows, 4)
    assert min(part.num_rows for part in parts) > 100
    assert len(np.unique(rows["session"])) == 400


def test_pairs_of_long_lists_are_made_some_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    lists = [[draw.integers(20, size=draw.integers(9)).tolist() for _ in range(60)] for _ in range(2)]
    table = pa.table({"a": lists[0], "b": lists[1], "w": draw.random(60)})
    how = GraphSettings(log=write(tmp_path / "log", table, rows=60), pairs=(("a", "b"),), weight="w")
    graph, made = build_graph(how), edges.edge_table
    monkeypatch.setattr(edges, "_EDGES", 200)
    sizes: list[int] = []
    monkeypatch.setattr(edges, "edge_table", lambda *of: (sizes.append(len(of[0])), made(*of))[1])
    assert same(graph, build_graph(how))
    assert max(sizes) <= 200


def test_blocks_and_settings_can_be_sent_to_workers(tmp_path: Path) -> None:
    from embstore.node2vec.blocks import LogBlocks

    how = GraphSettings(log=write(tmp_path / "log", clicks()), pairs=(("user", "item"),))
    log, how = pickle.loads(pickle.dumps((LogBlocks(how), how)))
    tables = [table for block in log.blocks for _, table in log.tables([block])]
    assert sum(table.num_rows for table in tables) == 300
    survey = pickle.loads(pickle.dumps(edges.joined([edges.survey_of(table, how) for table in tables])))
    assert survey.num_nodes == 50
    assert same(built(how, tables), build_graph(how))


def test_pairs_count_rows() -> None:
    table = pa.table({"a": ["x", "x", "y", None], "b": [1, 1, 1, 2]})
    graph = built(GraphSettings(log="log", pairs=(("a", "b"),)), [table])
    assert graph.num_nodes == 3
    assert named(graph)[("a", "x"), ("b", 1)] == 2.0
    assert graph.parts() == {"a": range(0, 2), "b": range(2, 3)}
    directed = built(GraphSettings(log="log", pairs=(("a", "b"),), directed=True), [table])
    assert directed.degrees().tolist() == [1, 1, 0]


def test_a_session_window_includes_its_end_and_a_session_spans_blocks() -> None:
    table = pa.table({"u": [1, 1, 1], "i": ["a", "b", "c"], "t": [0, 30, 61]})
    how = GraphSettings(log="log", sessions=(edges.SessionSettings(column="i", by="u", time="t", window="30s"),))
    graph = built(how, [table.slice(row, 1) for row in range(3)])
    assert named(graph).keys() == {((("i"), a), ("i", b)) for a, b in ("ab", "ba")}


def test_times_at_both_ends_of_time() -> None:
    far = [-(2**63) // 10**6 + 1, 2**63 // 10**6 - 1]
    table = pa.table({"u": [1, 1], "i": ["a", "b"], "t": far})
    how = GraphSettings(log="log", sessions=(edges.SessionSettings(column="i", by="u", time="t", window="7d"),))
    with pytest.raises(GraphError, match="at least one edge"):
        built(how, [table])


def test_decay_by_a_date_that_is_given() -> None:
    start = datetime(2024, 5, 1, tzinfo=UTC)
    at = pa.array([start, start + timedelta(days=2), start + timedelta(days=9)], pa.timestamp("ns", "UTC"))
    how = parse(
        GraphSettings,
        {"log": "log", "pairs": [["a", "b"]], "decay": {"time": "t", "half_life": "2d", "now": datetime(2024, 5, 3)}},
    )
    graph = built(how, [pa.table({"a": [1, 2, 3], "b": [1, 1, 1], "t": at})])
    assert graph.weights_E is not None
    assert graph.weights_E[:3].tolist() == [0.5, 1.0, 1.0]


def test_sums_are_exact_where_float64_adds_in_order() -> None:
    # 1 + 2^-53 is 1 in float64, so adding one by one would lose them all.
    small = [1.0] + [2.0**-53] * 2**20
    table = pa.table({"a": np.zeros(len(small), np.int64), "b": np.zeros(len(small), np.int64), "w": small})
    how = GraphSettings(log="log", pairs=(("a", "b"),), weight="w", min_weight=1 + 2.0**-34)
    assert built(how, [table]).num_edges == 1
    assert built(how, [table.slice(1), table.slice(0, 1)]).num_edges == 1


def test_large_integers_and_unsigned_ones_are_values_of_their_own() -> None:
    items = pa.array([2**64 - 1, 2**63, 0], pa.uint64())
    how = GraphSettings(log="log", pairs=(("a", "b"),))
    graph = built(how, [pa.table({"a": [-(2**63), 2**63 - 1, 0], "b": items})])
    assert graph.nodes is not None
    assert graph.nodes["b"].to_pylist() == [0, 2**63, 2**64 - 1]
    assert graph.nodes["a"].to_pylist() == [-(2**63), 0, 2**63 - 1]
    other = pa.table({"a": [1], "b": [-1]})
    with pytest.raises(SchemaError, match="one type"):
        built(how, [pa.table({"a": [1], "b": items[:1]}), other])


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({}, ConfigError, "one of log, edges and graph"),
        ({"log": "a", "edges": "b"}, ConfigError, "log and edges"),
        ({"log": "a"}, ConfigError, "pairs or sessions"),
        ({"log": "a", "pairs": [["x", "x"]]}, ConfigError, "two different columns"),
        ({"log": "a", "pairs": [["x", "y", "z"]]}, ConfigError, "two different columns"),
        ({"edges": "a", "weight": "w"}, ConfigError, "graph.weight"),
        ({"edges": "a", "min_weight": -1}, ConfigError, "min_weight"),
        ({"edges": "a", "separator": "ab"}, ConfigError, "one character"),
        ({"log": "a", "pair": []}, ConfigError, "did you mean 'pairs'"),
        ({"log": "a", "sessions": [{"column": "i"}]}, ConfigError, "a window or steps"),
        ({"log": "a", "sessions": [{"column": "i", "window": "30m"}]}, ConfigError, "the time column"),
        ({"log": "a", "sessions": [{"column": "i", "time": "t", "window": "30 parsecs"}]}, ConfigError, "a unit"),
        ({"log": "a", "sessions": [{"column": "i", "time": "t", "window": -5}]}, ConfigError, "a unit"),
        ({"log": "a", "sessions": [{"column": "i", "steps": 0}]}, ConfigError, "sessions.steps"),
        ({"log": "a", "sessions": [{"column": "i", "by": "i", "steps": 1}]}, ConfigError, "apart from"),
        ({"log": "a", "pairs": [["x", "y"]], "decay": {"time": "t", "half_life": 0}}, ConfigError, "half_life"),
        (
            {"log": "a", "pairs": [["x", "y"]], "decay": {"time": "t", "half_life": 1, "now": "soon"}},
            ConfigError,
            "now",
        ),
    ],
)
def test_settings_that_mean_nothing(given: dict[str, Any], error: type[EmbstoreError], text: str) -> None:
    with pytest.raises(error, match=text):
        parse(GraphSettings, given)


@pytest.mark.parametrize(
    ("changed", "how", "error", "text"),
    [
        ({}, {"pairs": [["user", "itm"]]}, SchemaError, "'itm'.*did you mean 'item'"),
        ({"item": [0.5]}, {}, SchemaError, "cast it to integers or text"),
        ({"item": pa.array([0], pa.timestamp("s"))}, {}, SchemaError, "can't be a feature"),
        ({"w": ["1"]}, {"weight": "w"}, SchemaError, "weight column 'w'; expected numbers"),
        ({"w": [-0.5]}, {"weight": "w"}, GraphError, "-0.5 in row 0"),
        ({"w": [math.nan]}, {"weight": "w"}, GraphError, "nan in row 0"),
        ({"w": [math.inf]}, {"weight": "w"}, GraphError, "inf in row 0"),
        ({"w": [0.0]}, {"weight": "w"}, GraphError, "at least one edge"),
        ({"w": [1e300]}, {"weight": "w"}, GraphError, "float32"),
        ({"user": ["x" * 70_000]}, {}, DataError, "65,536 bytes"),
        ({"user": pa.nulls(1)}, {}, GraphError, "at least one edge"),
        ({}, {"sessions": [{"column": "item", "steps": 1}]}, SchemaError, "say by which column"),
        ({}, {"sessions": [{"column": "item", "by": "tags", "steps": 1}]}, SchemaError, "one value a row"),
        ({}, {"sessions": [{"column": "item", "by": "w", "steps": 1}]}, SchemaError, "'w' can't be a feature"),
        (
            {},
            {"sessions": [{"column": "item", "by": "user", "time": "w", "window": 1}]},
            SchemaError,
            "time column 'w'",
        ),
        ({"time": [2**62]}, {"decay": {"time": "time", "half_life": 1}}, DataError, "64 bits"),
    ],
)
def test_logs_that_are_none_of_a_graph(
    tmp_path: Path, changed: dict[str, Any], how: dict[str, Any], error: type[EmbstoreError], text: str
) -> None:
    row = {"user": ["a"], "item": [1], "time": [0], "w": [1.0], "tags": [["x"]]}
    log = write(tmp_path / "log", pa.table({**row, **changed}))
    with pytest.raises(error, match=text):
        build_graph(parse(GraphSettings, {"log": log, "pairs": [["user", "item"]], **how}))


def test_logs_that_are_broken(tmp_path: Path) -> None:
    def graph(log: str) -> Graph:
        return build_graph(GraphSettings(log=log, pairs=(("user", "item"),)))

    with pytest.raises(LogError, match="no Parquet file"):
        graph(str(tmp_path / "nothing"))
    with pytest.raises(LogError, match="at least one row"):
        graph(write(tmp_path / "empty", clicks().slice(0, 0)))
    whole = Path(write(tmp_path / "cut", clicks())) / "part-0.parquet"
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(LogError, match="whole Parquet file"):
        graph(str(whole))
    mixed = Path(write(tmp_path / "mixed", clicks()))
    pq.write_table(pa.table({"user": [1], "item": [1]}), mixed / "other.parquet")
    with pytest.raises(LogError, match="disagree on column 'user'"):
        graph(str(mixed))


def test_movielens_100k_is_a_bipartite_graph(shared_data: Callable[[str], Path]) -> None:
    log = shared_data("movielens-100k") / "ratings.parquet"
    graph = build_graph(GraphSettings(log=str(log), pairs=(("user_id", "item_id"),), weight="rating"))
    assert graph.parts() == {"user_id": range(943), "item_id": range(943, 2625)}
    assert graph.num_edges == 100_000
    table = pq.read_table(log, columns=["rating", "user_id"])
    assert graph.strengths()[:943].sum() == sum(table["rating"].to_pylist()) == graph.strengths()[943:].sum()
    assert graph.degrees()[:943].tolist() == np.bincount(table["user_id"].to_numpy())[1:].tolist()


def test_movielens_100k_in_sessions(shared_data: Callable[[str], Path]) -> None:
    log = shared_data("movielens-100k") / "ratings.parquet"
    given = {"sessions": [{"column": "item_id", "by": "user_id", "time": "timestamp", "window": 60}], "min_weight": 2}
    table = pq.read_table(log, columns=["item_id", "user_id", "timestamp"])
    table = table.filter(pa.compute.less(table["user_id"], 60))
    how = parse(GraphSettings, {"log": str(log), **given})
    plain = table.set_column(2, "timestamp", table["timestamp"].cast(pa.timestamp("s")).cast(pa.int64())).to_pylist()
    assert named(built(how, [table.slice(0, 3000), table.slice(3000)], parts=3)) == judged(how, plain)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2], None, [3, 3]], pa.list_(pa.int8(), 2)),
        pa.array([[1, 2], [], [3, None, 3]], pa.large_list(pa.int64())),
        pa.ListArray.from_arrays([0, 2, 2, 4], pa.array([1, 2, 3, 3]).dictionary_encode()),
        pa.array([[9, 9], [1, 2], None, [3, 3]], pa.list_(pa.int32(), 2)).slice(1),
        pa.ListArray.from_arrays(
            pa.array([0, 2, 4, 6], pa.int32()), pa.array([1, 2, 9, 9, 3, 3]), mask=pa.array([False, True, False])
        ),
    ],
)
def test_lists_however_they_are_stored(column: pa.Array) -> None:
    how = GraphSettings(log="log", pairs=(("b", "list"),), sessions=(edges.SessionSettings(column="list", steps=1),))
    graph = built(how, [pa.table({"b": [True, False, None], "list": column})])
    assert named(graph) == {
        (("b", 1), ("list", 1)): 1,
        (("b", 1), ("list", 2)): 1,
        (("list", 1), ("b", 1)): 1,
        (("list", 2), ("b", 1)): 1,
        (("list", 1), ("list", 2)): 1,
        (("list", 2), ("list", 1)): 1,
    }


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.string_view(), pa.large_binary(), pa.binary(2), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_however_it_is_stored(kind: pa.DataType) -> None:
    values = [b"ab", b"cd", b"ab"] if "binary" in str(kind) else ["ab", "cd", "ab"]
    graph = built(
        GraphSettings(log="log", pairs=(("a", "b"),)), [pa.table({"a": pa.array(values, kind), "b": [1, 1, 1]})]
    )
    assert graph.nodes is not None
    assert graph.nodes["a"].to_pylist() == values[:2]
    assert graph.weights_E is not None
    assert graph.weights_E.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 60, 121]),
        pa.array([0, 60, 121], pa.timestamp("s")),
        pa.array([0, 60_000, 121_000], pa.timestamp("ms", "Europe/Berlin")),
        pa.array([1, 60 * 10**9 + 999, 121 * 10**9], pa.timestamp("ns")),
        pa.array([0, 1, 3], pa.date32()),
    ],
)
def test_times_however_they_are_stored(column: pa.Array) -> None:
    window = "1d" if pa.types.is_date(column.type) else "1m"
    how = GraphSettings(log="log", sessions=(edges.SessionSettings(column="i", by="u", time="t", window=window),))
    graph = built(how, [pa.table({"u": ["x"] * 3, "i": ["a", "b", "c"], "t": column})])
    assert named(graph).keys() == {(("i", "a"), ("i", "b")), (("i", "b"), ("i", "a"))}

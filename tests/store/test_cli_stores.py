"""What all commands that use a store have in common, and how they say no."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from commands import invoke

from embstore.cli import cli, main
from embstore.cli.console import out, plain_table
from embstore.continuous import place_of
from embstore.errors import ConfigError, SchemaError, VersionNotFoundError, nearest
from embstore.store import Store

VERBS = {
    "publish": ["run"],
    "versions": [],
    "promote": ["latest"],
    "rollback": [],
    "lookup": ["f", "1"],
    "verify": [],
    "gc": [],
    "tag": ["spring", "latest"],
    "untag": ["spring"],
    "diff": ["previous", "latest"],
    "compact": [],
    "export": ["--format", "safetensors", "--to", "x.safetensors"],
    "import": ["vectors.parquet", "--feature", "f"],
    "train": ["--from", "latest", "--train", "log.parquet"],
}
PLACES = ("s3://bucket/a/prefix", "gs://bucket", "az://container/x", "file:///somewhere/store", "plain/folder")


def options(command: click.Command) -> dict[str, click.Parameter]:
    return {name: parameter for parameter in command.params for name in parameter.opts}


def write_log(path: Path, values: Any) -> Path:
    pq.write_table(pa.table({"f": values, "y": [i % 2 for i in range(len(values))]}), path)
    return path


class Opened(Exception):  # noqa: N818 - what happened, not an error
    """A store was opened, by this name."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, where opening a store raises ``Opened``."""

    def init(self: Store, path: str | Path, **_: Any) -> None:
        raise Opened(path)

    class Trained:
        bundle = parent = staticmethod(lambda *_: None)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Store, "__init__", init)
    monkeypatch.setattr("embstore.run.Run.open", lambda *_, **__: Trained)


def test_every_command_teaches_and_those_of_a_store_speak_json() -> None:
    asking = {"prune", "select"}  # a store for a model, which what else they are given must fit
    assert {name for name, command in cli.commands.items() if "--store" in options(command)} - asking == set(VERBS)
    for name, command in cli.commands.items():
        text = invoke(name, "--help").output
        assert re.search(rf"Examples?:\n( +.*\n)*? +embstore {name}\b", text), name
        if isinstance(command, click.Group):
            command = command.commands["build"]
        if name != "demo":
            assert "--json" in options(command), name
            assert options(command)["--json"].is_flag, name  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("opened")
def test_a_store_is_opened_by_the_name_that_was_given(verb: str, place: str, tmp_path: Path) -> None:
    """The case: a path made s3:/ of s3://, and a folder of that name."""
    with pytest.raises(Opened) as raised:
        invoke(verb, *VERBS[verb], "--store", place)
    assert raised.value.args == (place,)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["start", "publish"])
@pytest.mark.parametrize("given", ["yaml", "flag"])
@pytest.mark.usefixtures("opened")
def test_a_run_opens_its_stores_by_the_names_they_were_given(key: str, given: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", ["a", "b", "c"] * 20)
    config: dict[str, Any] = {"logs": {"train": str(log)}, "label": "y", "output": str(tmp_path / "run")}
    flag = {"start": "--store", "publish": "--publish"}[key]
    if given == "yaml":
        config[key] = {"store": "s3://bucket/models"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(Opened) as raised:
        invoke("train", tmp_path / "config.yaml", *([flag, "s3://bucket/models"] if given == "flag" else []))
    assert raised.value.args == ("s3://bucket/models",)
    assert {path.name for path in tmp_path.iterdir()} <= {"log.parquet", "config.yaml", "run"}


def test_names_of_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = (tmp_path / "a store").resolve()
    for name in ("a store", "./a store/", str(here), here, f"file://{tmp_path}/a%20store", Path("a store")):
        assert place_of(name) == here
    assert place_of("s3://bucket/x/") == place_of("s3://bucket/x") == "s3://bucket/x"
    assert len({place_of(f"{scheme}://bucket/x") for scheme in ("s3", "gs", "az")}) == 3


def test_a_file_uri_is_a_store_like_its_folder(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    version = Store(tmp_path).publish(make_bundle()).id
    (listed,) = json.loads(invoke("versions", "--store", f"file://{tmp_path}", "--json").output)
    assert listed["version"] == version
    assert invoke("tag", "spring", "latest", "--store", f"file://{tmp_path}").output == f"spring is {version}\n"


def test_versions_fits_in_120_columns(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    from embstore.cli.versions import _cells

    row = {
        "version": "20261125T040156Z-ece27a08",
        "aliases": ["latest", "production"],
        "tags": [],
        "parent": "20261125T040152Z-5f9669cd",
        "table": "16,777,216 x 64 float32",
        "bytes": 4_294_967_296,
        "delta": None,
        "auc": {"valid": 0.81234567, "test": 0.81234567},
        "damaged": None,
        **dict.fromkeys(("model", "node2vec", "lineage")),
    }
    delta = {**row, "delta": {"base": row["parent"], "rows": 1_234_567, "depth": 1}}
    cells = [_cells(each, [row["version"]]) for each in (row, delta)]
    columns = ("version", "names", "parent", "table", "bytes", "valid auc", "test auc")
    with out.capture() as capture:
        out.print(plain_table(columns, cells))
    lines = capture.get().splitlines()
    assert len(lines) == 3
    assert max(len(line.rstrip()) for line in lines) <= 120
    assert "0.81235" in lines[1]
    assert "parent + 1,234,567 rows" in lines[2]


def test_versions_says_what_a_delta_is_and_whose_auc_it_is(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    from embstore.store import Change

    times = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(1000))
    store = Store(tmp_path, clock=lambda: next(times))
    whole = store.publish(make_bundle(metrics={"test": {"auc": 0.5}}))
    base = store.open(whole.id)
    rows_ND = base.table.read_rows(0, 40).clone()
    rows_ND[3:5] += 1
    delta = store.publish(make_bundle(rows_ND=rows_ND), change=Change(base=base))
    newest, oldest = json.loads(invoke("versions", "--store", tmp_path, "--json").output)
    assert (oldest["delta"], oldest["auc"]) == (None, {"valid": None, "test": 0.5})
    assert newest["delta"] == {"base": whole.id, "rows": 2, "depth": 1}
    assert newest["auc"] == {"valid": 0.75, "test": None}
    for listed, version in ((oldest, whole), (newest, delta)):
        files = [path for path in version.folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
        assert listed["bytes"] == sum(path.stat().st_size for path in files)
    head, first, second = invoke("versions", "--store", tmp_path).output.splitlines()
    assert head.split() == ["version", "names", "parent", "table", "bytes", "valid", "auc", "test", "auc"]
    assert f"{delta.id}  latest  {whole.id.partition('-')[0]}  parent + 2 rows" in first
    assert first.index("0.75000") == head.index("valid auc")
    assert second.index("0.50000") == head.index("test auc")


def test_compact_makes_a_delta_whole_and_leaves_a_whole_version(
    make_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    from embstore.store import Change

    store = Store(tmp_path)
    whole = store.publish(make_bundle())
    told = invoke("compact", "--store", tmp_path).output
    assert told == f"{whole.id} is whole already\n"
    assert json.loads(invoke("compact", whole.id, "--store", tmp_path, "--json").output)["compacted"] is False
    assert len(store.versions()) == 1
    delta = store.publish(make_bundle(seed=1), change=Change(base=store.open(whole.id)))
    said = json.loads(invoke("compact", delta.id, "--store", tmp_path, "--json").output)
    made = store.open(said["version"])
    assert (said["of"], said["compacted"], made.compacts, made.delta) == (delta.id, True, delta.id, None)
    assert made.table.read_rows(0, 40).equal(make_bundle(seed=1).table.read_rows(0, 40))
    assert (said["encoding"], said["loss"]) == ("float32", None)
    store.promote(delta.id, "canary")
    assert re.search(rf"^published \S+, {delta.id} whole: ", invoke("compact", "canary", "--store", tmp_path).output)
    said = invoke("compact", "canary", "--encoding", "int8", "--store", tmp_path).output
    assert re.search(r"^int8: numbers changed by \S+ at most", said, re.MULTILINE)


def test_an_unknown_version_names_few(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    """The case: a store of many versions answered a misspelt one with all its ids."""
    store = Store(tmp_path)
    for seed in range(7):
        store.publish(make_bundle(seed=seed))
    with pytest.raises(VersionNotFoundError, match=r"7 are known, e\.g\. ") as raised:  # latest is one of them
        invoke("promote", "2099", "--store", tmp_path)
    assert str(raised.value).count("T") == 3
    with pytest.raises(VersionNotFoundError, match="did you mean 'latest'"):
        invoke("promote", "lastest", "--store", tmp_path)


def test_names_of_what_is_known_are_not_counted() -> None:
    assert nearest("x", ["b", "a"], also=["latest"]) == "known: a, b, latest"
    assert nearest("lates", ["b", "a"], also=["latest"]) == "did you mean 'latest'?"
    assert nearest("z", [f"{n:09d}" for n in range(20)], also=["latest"]).startswith("20 are known, e.g. ")


def test_nearest_names_all_of_a_few_and_a_few_of_many() -> None:
    assert nearest("x", []) == "none are known"
    assert nearest("x", ["b", "a"]) == "known: a, b"
    assert nearest("user", ["user_id", "item_id"]) == "did you mean 'user_id'?"
    many = [f"feature_{number:03d}" for number in range(1000)]
    said = nearest("z9", many)
    assert said.startswith("1,000 are known, e.g. ")
    assert len(re.findall(r"feature_\d", said)) == 3


@pytest.mark.parametrize("part", ["table/bucket-00000.safetensors", "schema.yaml", "log"])
def test_a_damaged_version_says_what_to_do(
    part: str,
    make_bundle: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = Store(tmp_path).publish(make_bundle())
    path = tmp_path / "log" / "000000000001.json" if part == "log" else version.folder / part
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    monkeypatch.setattr(sys, "argv", ["embstore", "diff", "latest", "latest", "--store", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert path.name in line
    do = "restore it from a copy" if part == "log" else "roll back, or publish it again; `embstore verify --all` lists"
    assert do in line
    if part == "schema.yaml":
        path.unlink()  # the listing reads manifests, and sees which files there are
        assert "roll back, or publish it again" in invoke("versions", "--store", tmp_path).output


def test_train_from_a_version_needs_a_log(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("start: {store: s}\nlogs: {valid: x}\n")
    for arguments in (["--from", "latest"], ["--from", "latest", "--label", "y"], [tmp_path / "config.yaml"]):
        with pytest.raises(ConfigError, match="expected a log to train on; found none; give it with --train LOGS"):
            invoke("train", *arguments)


@pytest.mark.parametrize("seed", [-3, 2**63])
def test_a_seed_that_cannot_be_is_said_of_the_option(seed: int) -> None:
    result = invoke("train", "--train", "x", "--label", "y", "--seed", seed)
    assert result.exit_code == 2
    assert f"Invalid value for '--seed': {seed} is not in the range" in result.stderr


def test_train_prints_json(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", ["a", "b", "c"] * 50)
    flags = ["--train", log, "--test", log, "--label", "y", "--set", "table.rows=20", "--set", "model.name=dnn"]
    said = json.loads(invoke("train", *flags, "--output", tmp_path / "run", "--json").stdout)
    assert said == {"output": str(tmp_path / "run"), **json.loads((tmp_path / "run" / "result.json").read_text())}
    said = json.loads(invoke("train", *flags, "--output", tmp_path / "seeds", "--seeds", 2, "--json").stdout)
    assert said.pop("output") == str(tmp_path / "seeds")
    assert said == json.loads((tmp_path / "seeds" / "summary.json").read_text())


def test_a_schema_as_json_is_one_to_train_with(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", ["a", "b", "c"] * 50)
    said = json.loads(invoke("schema", log, "--label", "y", "--json").stdout)
    assert said == yaml.safe_load(invoke("schema", log, "--label", "y").stdout)


TIME = datetime(2026, 1, 1)


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        pytest.param(["1", "2"], [1, 2], id="text and integers"),
        pytest.param([1, 2], ["1", "2"], id="integers and text"),
        pytest.param(pa.array([[1], [2]]), pa.array([["1"], ["2"]]), id="lists"),
        pytest.param(pa.array(["1", "2"]).dictionary_encode(), [1, 2], id="a dictionary"),
    ],
)
def test_logs_that_disagree_on_a_type_are_refused(train: Any, valid: Any, tmp_path: Path) -> None:
    """The case: digits as text in one log, as numbers in the other: every value of the second was unknown."""
    logs = [write_log(tmp_path / f"{name}.parquet", values) for name, values in (("train", train), ("valid", valid))]
    types = [pq.read_schema(log).field("f").type for log in logs]
    said = f"column 'f' of the valid log; expected {types[0]} as in the train log ({logs[0]}); found {types[1]} in "
    with pytest.raises(SchemaError, match=re.escape(said)):
        _train(tmp_path, *logs)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        pytest.param(pa.array([1, 2], pa.int64()), pa.array([1, 2], pa.uint8()), id="integers"),
        pytest.param(pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"]).dictionary_encode(), id="text"),
        pytest.param(pa.array(["a", "b"]), pa.array([b"a", b"b"]), id="text as bytes"),
        pytest.param(["a", "b"], pa.nulls(2), id="no values"),
        pytest.param(
            pa.array([TIME] * 2, pa.timestamp("ms")), pa.array([TIME] * 2, pa.timestamp("us", "UTC")), id="time"
        ),
    ],
)
def test_logs_whose_types_mean_the_same_are_taken(train: Any, valid: Any, tmp_path: Path) -> None:
    logs = [write_log(tmp_path / f"{name}.parquet", values) for name, values in (("train", train), ("valid", valid))]
    transform = {"transform": "hour"} if pa.types.is_timestamp(pq.read_schema(logs[0]).field("f").type) else {}
    assert _train(tmp_path, *logs, **transform).exit_code == 0


def _train(folder: Path, train: Path, valid: Path, **feature: str) -> Result:
    schema = {"label": "y", "features": [{"name": "f", **feature}]}
    config = {"logs": {"train": str(train), "valid": str(valid)}, "schema": schema, "output": str(folder / "run")}
    small = {"table": {"rows": 20, "dim": 4}, "model": {"name": "dnn", "hidden": [4]}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **small}))
    return invoke("train", folder / "config.yaml")


def test_encodings_are_those_of_the_store() -> None:
    from embstore.cli.store import ENCODINGS
    from embstore.store.quantization import ENCODINGS as KNOWN

    assert ENCODINGS == KNOWN


@pytest.mark.parametrize(
    "command",
    [
        ["export", "--format", "safetensors", "--to"],
        ["schema", "x", "--label", "y", "--output"],
        ["train", "--train", "x", "--label", "y", "--output"],
        ["dataset", "frappe", "--from", "x", "--to"],
        ["demo", "--to"],
    ],
    ids=lambda command: command[0],
)
def test_what_is_written_on_this_machine_has_no_uri(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*command, "s3://bucket/x")
    assert result.exit_code == 2
    assert "is a URI" in result.stderr
    assert not list(tmp_path.iterdir())


def test_versions_show_metrics_of_any_shape(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    Store(tmp_path).publish(make_bundle(metrics={"valid": 0.7, "test": {"auc": 0.8}}))
    assert "0.80000" in invoke("versions", "--store", tmp_path).output

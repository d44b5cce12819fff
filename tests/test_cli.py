"""The command line, from a log to a lookup, and how it says no."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import invoke

from embstore.cli import cli, commands, main
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import EmbstoreError, Interrupted
from embstore.settings import RunConfig
from embstore.store import Store, open_tensors
from embstore.synthetic import SyntheticLog
from embstore.tokens import token

LOG = SyntheticLog(rows=16_000, users=100, items=50)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    for name, days in (("train", (0, 6)), ("valid", (6, 7)), ("test", (7, 8))):
        LOG.write(folder / name, rows=LOG.day_rows(*days))
    return folder


@pytest.fixture(scope="module")
def trained(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made with no configuration but the label, published in a store beside it."""
    folder = tmp_path_factory.mktemp("work")
    flags = [f"--{name}={logs / name}" for name in ("train", "valid", "test")]
    sizes = ["--set", "table.rows=5000", "--set", "training.batch_size=500"]
    result = invoke("train", *flags, "--label", "click", *sizes, "--output", folder / "run")
    assert result.exit_code == 0
    assert "parameters" in result.output
    assert invoke("publish", folder / "run", "--store", folder / "store").exit_code == 0
    return folder


def test_a_log_and_its_label_are_enough_to_train(trained: Path) -> None:
    result = json.loads((trained / "run" / "result.json").read_text())
    assert result["test"]["rows"] == len(LOG.day_rows(7))
    assert 0.55 < result["test"]["auc"] < 0.85
    schema = (trained / "run" / "schema.yaml").read_text()
    assert "user_id" in schema
    assert "timestamp" in schema


def test_an_inferred_schema_is_shown_when_a_run_starts(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it goes on, nor before an error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["embstore", *map(str, arguments)])
        code = commands.run()
        return code, capsys.readouterr().err

    flags = ["--train", logs / "train", "--label", "click", "--output", tmp_path / "run"]
    flags += ["--set", "table.rows=500", "--set", "training.batch_size=5000"]
    refused = run("train", *flags, "--valid", tmp_path / "absent")
    assert refused[0] == 1
    assert refused[1].startswith("error LogError")
    shown = [run("train", *flags, *more) for more in ([], [], ["--fresh"], ["--seeds", "2"])]
    assert [code for code, _ in shown] == [0] * 4
    assert [said.count("schema, inferred") for _, said in shown] == [1, 0, 1, 1]
    assert [said.count("name: user_id") for _, said in shown] == [1, 0, 1, 1]


def test_evaluate_gives_what_training_measured(trained: Path, logs: Path) -> None:
    measured = json.loads(invoke("evaluate", trained / "run", "--log", logs / "test", "--json").output)
    assert measured == json.loads((trained / "run" / "result.json").read_text())["test"]


def test_versions_and_lookup(trained: Path) -> None:
    store = trained / "store"
    (listed,) = json.loads(invoke("versions", "--store", store, "--json").output)
    assert listed["aliases"] == ["latest"]
    assert listed["version"] in invoke("versions", "--store", store).output
    answer = json.loads(invoke("lookup", "--store", store, "category", "books", "music", "--json").output)
    assert answer["version"] == listed["version"]
    version = Store(store).open()
    assert [len(vector) for vector in answer["vectors"]] == [version.table.dim] * 2
    item = pq.read_table(next((Path(version.manifest["lineage"]["config"]["logs"]["train"])).glob("*")))["item_id"][
        0
    ].as_py()
    assert invoke("lookup", "--store", store, "item_id", item).exit_code == 0
    assert invoke("lookup", "--store", store, "tags", "tag01").exit_code == 0
    with pytest.raises(EmbstoreError) as refused:
        invoke("lookup", "--store", store, "item_id", item, "abc", "def")
    assert str(refused.value) == "feature 'item_id': value 'abc' is not an int64"
    assert invoke("lookup", "--store", store, "item_id", "--", "-5").exit_code == 0
    assert invoke("lookup", "--store", store, "timestamp_hour", "2026-01-31T18:30").exit_code == 0
    with pytest.raises(EmbstoreError, match=r"value '18' is not a timestamp.*write it as"):
        invoke("lookup", "--store", store, "timestamp_hour", "18")
    with pytest.raises(EmbstoreError, match="did you mean 'category'"):
        invoke("lookup", "--store", store, "categry", "books")
    with pytest.raises(EmbstoreError, match="2099"):
        invoke("lookup", "--store", store, "--version", "2099", "category", "books")


def test_an_alias_is_promoted_and_rolled_back(trained: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for _ in range(2):
        said = json.loads(invoke("publish", trained / "run", "--store", store, "--json").output)
    first, second = (info.id for info in Store(store).versions())
    version = Store(store).open(second)
    assert said == {
        "version": second,
        "parent": None,
        "digest": version.digest,
        "encoding": "float32",
        "loss": None,
        "optimizer": True,
        "bytes": sum(
            path.stat().st_size for path in version.folder.rglob("*") if path.name != "manifest.json" and path.is_file()
        ),
        "folder": str(version.folder),
    }
    moved = json.loads(invoke("promote", first, "--store", store, "--json").output)
    assert moved == {"alias": "production", "version": first, "aliases": ["production"]}
    assert second in invoke("promote", "latest", "--store", store).output
    assert Store(store).aliases()["production"] == second
    assert json.loads(invoke("rollback", "--store", store, "--json").output)["version"] == first
    assert invoke("promote", first, "--store", store, "--alias", "canary").output == f"canary is {first}\n"
    with pytest.raises(EmbstoreError, match=r"config\.yaml; expected a folder that can be written; found not a folder"):
        invoke("publish", trained / "run", "--store", trained / "run" / "config.yaml")


def test_a_version_is_published_smaller_and_says_what_that_costs(trained: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    flags = ["--encoding", "int8", "--no-optimizer"]
    said = json.loads(invoke("publish", trained / "run", "--store", store, *flags, "--json").output)
    version, whole = Store(store).open(), Store(trained / "store").open()
    assert (said["encoding"], version.table.encoding) == ("int8", "int8")
    assert version.optimizer is None
    assert whole.optimizer is not None
    assert not any("optimizer" in name for name in version.files)
    rows, stored = (of.table.read_rows(0, of.table.num_rows).double() for of in (whole, version))
    assert said["loss"]["largest"] == pytest.approx(float((rows - stored).abs().max()))
    assert said["loss"]["relative"] == pytest.approx(float((rows - stored).norm() / rows.norm()))
    lines = invoke("publish", trained / "run", "--store", store, *flags).output.splitlines()
    assert lines[0].startswith(f"published {Store(store).resolve('latest')} in {store}: ")
    assert lines[1].startswith(f"int8: numbers changed by {said['loss']['largest']:.3g} at most")
    assert said["folder"] == str(version.folder)
    assert "int4" in invoke("publish", trained / "run", "--store", store, "--encoding", "int9").stderr


def test_a_published_version_scores_as_the_run_did(trained: Path, logs: Path) -> None:
    from embstore import models
    from embstore.ctr import CtrModel
    from embstore.logs import ParquetLog
    from embstore.training import evaluate

    version = Store(trained / "store").open()
    model = CtrModel.restore(version, models.build)
    result = evaluate(model, ParquetLog(logs / "test", version.schema), 16_384)
    assert result == json.loads((trained / "run" / "result.json").read_text())["test"]


def test_schema_says_why(logs: Path, tmp_path: Path) -> None:
    text = invoke("schema", logs / "train", "--label", "click", "--group", "user_id").output
    data = yaml.safe_load(text)
    assert data["label"] == "click"
    assert {"user_id", "item_id", "category", "tags"} <= {f["name"] for f in data["features"]}
    assert "#" in text
    assert invoke("schema", logs / "train", "--label", "click", "--output", tmp_path / "s.yaml").exit_code == 0
    assert yaml.safe_load((tmp_path / "s.yaml").read_text())["label"] == "click"


def test_schema_warns_of_a_label_that_training_will_refuse(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": [0.0, 1.0, None, 3.0], "x": ["a", "b", "a", "b"]}), tmp_path / "log.parquet")
    result = invoke("schema", tmp_path / "log.parquet", "--label", "y")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["label"] == "y"
    assert "warning: label 'y': 2 of 4 rows looked at are not 0 or 1 (missing, 3.0)" in result.stderr
    with pytest.raises(EmbstoreError, match="expected 0 or 1"):
        invoke("train", "--train", tmp_path / "log.parquet", "--label", "y", "--output", tmp_path / "run")


def _saved(folder: Path) -> dict[str, object]:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    del settings["output"]
    return settings


def test_a_minimal_yaml_is_the_same_run_as_the_flags(logs: Path, tmp_path: Path) -> None:
    for name in ("flags", "label", "schema"):
        (tmp_path / name).mkdir()
    schema = invoke("schema", logs / "valid", "--label", "click", "--output", tmp_path / "columns.yaml")
    assert schema.exit_code == 0
    common = {"logs": {"train": str(logs / "valid")}}
    flags = ["--train", logs / "valid", "--label", "click", "--output", tmp_path / "flags"]
    assert invoke("train", *flags).exit_code == 0
    for name, more in (("label", {"label": "click"}), ("schema", {"schema": str(tmp_path / "columns.yaml")})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**common, **more, "output": str(tmp_path / name)}))
        assert invoke("train", tmp_path / f"{name}.yaml").exit_code == 0
        assert _saved(tmp_path / name) == _saved(tmp_path / "flags")
    assert _saved(tmp_path / "flags")["table"]["rows"] == 262_144
    assert _saved(tmp_path / "flags")["model"] == {"name": "dcn"}
    assert f"[default: {RunConfig.output}]" in invoke("train", "--help").output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logs: {train: x}\n", "config; expected a schema, or the label to infer one for; found neither"),
        ("label: y\n", "config: key 'logs' is missing; add logs: <a mapping with train>"),
        ("logs: x\nlabel: y\n", "config.logs; expected a mapping of keys to values; found 'x'"),
        ("logs: {train: x}\nlabel: y\ntable: 3\n", "config.table; expected a mapping of keys to values; found 3 "),
        ("logs: {train: x}\nlabel: y\nmodel: [dcn]\n", "config.model; expected a mapping; found ['dcn']"),
        ("logs: {train: x}\nlabel: y\nmodel: {name: 3}\n", "config.model.name; expected the name of a model"),
        ("logs: {train: x}\nschema: 3\n", "config.schema; expected "),
    ],
)
def test_what_is_wrong_in_a_yaml_is_said_in_its_words(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(EmbstoreError) as refused:
        invoke("train", tmp_path / "config.yaml")
    assert str(refused.value).startswith(message)
    assert "<class" not in str(refused.value)


def test_one_class_and_few_steps_are_said(logs: Path, tmp_path: Path) -> None:
    """The case: a log of clicks only gave an AUC of nothing, and no word of why."""
    table = pq.read_table(logs / "valid")
    ones = table.filter(pa.compute.equal(table["click"], 1))
    pq.write_table(ones, tmp_path / "ones.parquet")
    small = ["--label", "click", "--set", "table.rows=100", "--set", "training.batch_size=500"]
    log = tmp_path / "ones.parquet"
    result = invoke("train", "--train", log, "--test", log, *small, "--output", tmp_path / "run")
    assert result.exit_code == 0
    assert result.stderr.count("warning: every label of the training log is 1") == 1
    assert result.stderr.count("warning: every label of the test log is 1; its AUC is undefined") == 1
    assert re.search(r"hint: only \d steps?; a smaller training\.batch_size or more training\.epochs", result.stderr)
    assert re.search(r"^ ?auc +n/a \(one class\)", result.stdout, re.MULTILINE)
    assert "n/a (one class)" in invoke("evaluate", tmp_path / "run", "--log", log).stdout
    both = invoke("train", "--train", logs / "valid", *small, "--output", tmp_path / "both", "--seeds", "2")
    assert "warning" not in both.stderr


def test_output_that_is_no_folder(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    for output in ("afile", "afile/below"):
        for more in ([], ["--fresh"]):
            with pytest.raises(EmbstoreError, match=f"{output}; expected a folder that can be made and written to"):
                invoke("train", "--train", logs / "valid", "--label", "click", "--output", tmp_path / output, *more)


def test_demo_ends_with_commands_that_work(tmp_path: Path) -> None:
    result = invoke("demo", "--to", tmp_path / "a demo", "--rows", "10000")
    assert result.exit_code == 0
    commands = [
        shlex.split(line)[1:] for line in result.output.replace("next", "    ").splitlines() if " embstore " in line
    ]
    assert [command[0] for command in commands] == ["versions", "lookup", "schema"]
    for command in commands:
        assert invoke(*command).exit_code == 0


def test_yaml_flags_and_seeds(logs: Path, tmp_path: Path) -> None:
    config = {
        "logs": {"train": str(logs / "train"), "test": str(logs / "test")},
        "schema": {"label": "click", "features": ["user_id", {"name": "category", "exact": True}]},
        "table": {"rows": 100, "dim": 4},
        "model": {"name": "dnn", "hidden": [8]},
        "training": {"batch_size": 2000},
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert invoke("train", path, "--seeds", 2, "--set", "table.dim=8", "--set", "model.hidden=[4]").exit_code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seeds"] == 2
    first, second = (run["test"]["auc"] for run in summary["runs"])
    assert summary["test mean"]["auc"] == pytest.approx((first + second) / 2)
    assert first != second
    table = summary["runs"][0]["parameters"]["table"]
    assert table == 8 * (100 + len(pq.read_table(logs / "train")["category"].unique()) + 1)
    again = invoke("train", path, "--seeds", 2, "--set", "table.dim=8", "--set", "model.hidden=[4]")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary, again.output
    with pytest.raises(EmbstoreError, match=r"other settings.*another table\.dim;"):
        invoke("train", path, "--seeds", 2, "--set", "table.dim=4", "--set", "model.hidden=[4]")
    assert (
        invoke("train", path, "--seeds", 2, "--set", "table.dim=4", "--set", "model.hidden=[4]", "--fresh").exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "CONFIG file"),
        (["train", "absent.yaml"], "readable YAML file"),
        (["train", "--train", "nowhere/", "--label", "y"], "no Parquet file"),
        (["publish", "nowhere"], "folder of a run"),
        (["evaluate", "nowhere", "--log", "x"], "folder of a run"),
        (["lookup", "--store", "nowhere", "a", "b"], "store nowhere; expected a folder; found no such folder"),
        (["versions", "--store", "nowhere"], "store nowhere; expected a folder; found no such folder"),
        (["versions", "--store", "afile"], "store afile; expected a folder; found not a folder"),
        (["rollback", "--store", "nowhere"], "store nowhere; expected a folder; found no such folder"),
        (["promote", "latest", "--store", "nowhere"], "store nowhere; expected a folder"),
        (["demo", "--to", "afile"], "output afile; expected a folder .*; found a file"),
        (["demo", "--to", "afile/below"], "output afile/below; expected a folder .*; found Not a directory"),
        (["dataset", "critoe", "--from", "x", "--to", "y"], "did you mean 'criteo'"),
        (["train", "--set", "a", "--train", "x", "--label", "y"], "KEY=VALUE"),
        (
            ["train", "--device", "gpu", "--train", "x", "--label", "y"],
            "--device; expected cpu, cuda or cuda:1; found gpu",
        ),
        (["train", "--device", "cuda", "--workers", 2, "--train", "x", "--label", "y"], "--device; expected --gpus"),
        (
            ["train", "--device", "cuda:99", "--train", "x", "--label", "y"],
            "device cuda:99; expected a GPU of that number",
        ),
        (["schema", "nowhere", "--label", "y"], "no Parquet file"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    with pytest.raises(EmbstoreError, match=message):
        invoke(*arguments)


def test_unknown_yaml_keys_name_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("logs: {train: x}\nschema: s.yaml\ntable: {rows: 10, dims: 4}\nmodel: {name: dcn}\n")
    with pytest.raises(EmbstoreError, match=r"config\.table: unknown key 'dims'; did you mean 'dim'"):
        invoke("train", path)


def test_main_prints_one_line_and_exits_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["embstore", "train", "absent.yaml"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error ConfigError: ")
    assert "Traceback" not in error


@pytest.mark.parametrize("where", ["while commands are imported", "in a command"])
def test_ctrl_c_is_one_line_and_exit_code_130(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if where == "in a command":
        monkeypatch.setattr(sys, "argv", ["embstore", "versions", "--store", "x"])
        monkeypatch.setattr(cli.commands["versions"], "callback", interrupted)
    else:
        monkeypatch.delitem(sys.modules, "embstore.cli.commands")
        monkeypatch.setattr("embstore.cli.data.dataset", None)
        monkeypatch.setattr("click.group", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize("name", ["loop", "node2vec"])
def test_ctrl_c_says_what_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("embstore.config.load_yaml", interrupted)
    for more, said in (((), "stopped; the same command goes on"), (("--fresh",), "same command without --fresh goes")):
        with pytest.raises(Interrupted, match=said):
            invoke(name, tmp_path / "absent.yaml", *more)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "embstore", "--help"], capture_output=True, text=True, check=True)
    assert "embstore demo" in done.stdout


def test_help_teaches() -> None:
    assert "embstore demo" in invoke("--help").output
    for command in cli.commands:
        text = invoke(command, "--help").output
        assert "Example" in text, command


def test_movielens_100k_as_it_is(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Strings, integers, nulls, a list column and a timestamp: converted, trained, published, looked up."""
    source = shared_data("movielens-100k")
    assert invoke("dataset", "movielens-100k", "--from", source, "--to", tmp_path / "data").exit_code == 0
    _whole_way(tmp_path, "movie_id", least_auc=0.7)


@pytest.mark.parametrize(("name", "feature"), [("criteo", "C1"), ("avazu", "site_id")])
def test_raw_samples(shared_data: Callable[[str], Path], tmp_path: Path, name: str, feature: str) -> None:
    assert invoke("dataset", name, "--from", shared_data(f"{name}-sample"), "--to", tmp_path / "data").exit_code == 0
    _whole_way(tmp_path, feature, least_auc=0.55)


def _whole_way(folder: Path, feature: str, least_auc: float) -> None:
    data = folder / "data"
    flags = [f"--{name}={data / name}" for name in ("train", "valid", "test")]
    sizes = ["--set", "table.rows=20000", "--set", "training.batch_size=512", "--set", "training.epochs=2"]
    assert invoke("train", *flags, "--schema", data / "schema.yaml", *sizes, "--output", folder / "run").exit_code == 0
    assert json.loads((folder / "run" / "result.json").read_text())["test"]["auc"] > least_auc
    assert invoke("publish", folder / "run", "--store", folder / "store").exit_code == 0
    value = pa.compute.drop_null(pq.read_table(next((data / "test").rglob("*.parquet")))[feature])[0].as_py()
    answer = json.loads(invoke("lookup", "--store", folder / "store", feature, value, "--json").output)
    assert len(answer["vectors"]) == 1


def _small(folder: Path, columns: dict[str, object], feature: dict[str, object]) -> Path:
    """A log of these columns and a config that trains on it in a moment."""
    pq.write_table(pa.table({**columns, "y": [i % 2 for i in range(100)]}), folder / "log.parquet")
    config = {
        "logs": {"train": str(folder / "log.parquet")},
        "schema": {"label": "y", "features": [feature]},
        "table": {"rows": 50, "dim": 4},
        "model": {"name": "dnn", "hidden": [4]},
        "output": str(folder / "run"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


LARGE = 2**63 + 7


@pytest.mark.parametrize(
    ("column", "asked", "value"),
    [
        pytest.param(
            pa.array(["10007", "c1"] * 50).dictionary_encode(), "10007", "10007", id="digits in a dictionary of text"
        ),
        pytest.param(pa.array(["10007", "c1"] * 50).dictionary_encode(), "c1", "c1", id="text in a dictionary"),
        pytest.param(pa.array([LARGE, 2] * 50, pa.uint64()), str(LARGE), pa.array([LARGE], pa.uint64()), id="uint64"),
        pytest.param(pa.array([[5], [6, 7]] * 50), "6", [[6]], id="list of integers"),
        pytest.param(pa.array([["5"], ["6", "7"]] * 50), "6", [["6"]], id="list of text"),
        pytest.param(pa.array([True, False] * 50), "true", True, id="bool"),
    ],
)
def test_lookup_reads_values_as_the_column_has_them(
    tmp_path: Path, column: pa.Array, asked: str, value: object
) -> None:
    assert invoke("train", _small(tmp_path, {"f": column}, {"name": "f"})).exit_code == 0
    assert invoke("publish", tmp_path / "run", "--store", tmp_path / "store").exit_code == 0
    answer = json.loads(invoke("lookup", "--store", tmp_path / "store", "f", asked, "--json").output)
    table = UnifiedEmbedding.restore(Store(tmp_path / "store").open().table)
    values = value if isinstance(value, (list, pa.Array)) else [value]
    assert answer["vectors"] == table.lookup("f", values).tolist()


def test_another_log_in_the_same_folder_is_refused_or_starts_over(tmp_path: Path) -> None:
    """Exact tokens and checkpoints are of one log."""
    feature = {"name": "f", "exact": True}
    config = _small(tmp_path, {"f": [f"a{i}" for i in range(100)]}, feature)
    assert invoke("train", config).exit_code == 0
    before = (tmp_path / "run" / "result.json").read_text()
    _small(tmp_path, {"f": [f"bb{i}" for i in range(100)]}, feature)
    with pytest.raises(EmbstoreError, match=r"another logs\.train"):
        invoke("train", config)
    assert (tmp_path / "run" / "result.json").read_text() == before
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as when it was stopped before its first checkpoint
    assert invoke("train", config).exit_code == 0
    known = open_tensors(tmp_path / "run" / "exact.safetensors")["f"].tolist()
    assert np.int64(np.uint64(token("bb7")).view(np.int64)) in known


def test_an_unfinished_run_is_not_published(tmp_path: Path) -> None:
    assert invoke("train", _small(tmp_path, {"f": list(range(100))}, {"name": "f"})).exit_code == 0
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(EmbstoreError, match="finished run"):
        invoke("publish", tmp_path / "run", "--store", tmp_path / "store")


def test_bad_output_and_bad_settings_are_typed_errors(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbstoreError, match="can be written"):
        invoke("schema", logs / "train", "--label", "click", "--output", tmp_path / "no" / "s.yaml")
    for setting in ("table.dim=2024-13-45", "table.seed=-1", f"training.seed={2**70}", "table.init_std=-1"):
        with pytest.raises(EmbstoreError, match=r"dim|seed|init_std"):
            invoke("train", "--train", logs / "train", "--label", "click", "--output", tmp_path / "r", "--set", setting)

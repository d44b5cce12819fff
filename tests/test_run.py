"""A run, before it began, when it is finished and opened again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embstore import models
from embstore.config import parse
from embstore.errors import CheckpointError, ConfigError
from embstore.logs import ParquetLog
from embstore.run import Run
from embstore.settings import RunConfig
from embstore.synthetic import SyntheticLog

LOG = SyntheticLog(rows=3_000, days=4, users=50, items=60)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("logs")
    for name, days in (("train", (0, 3)), ("test", (3, 4))):
        LOG.write(folder / name, rows=LOG.day_rows(*days))
    settings = {
        "logs": {name: str(folder / name) for name in ("train", "test")},
        "schema": {"label": "click", "features": ["user_id", {"name": "category", "exact": True}], "dense": ["price"]},
        "table": {"rows": 200, "dim": 4},
        "model": {"name": "dnn", "hidden": [8]},
        "training": {"batch_size": 500},
    }
    return parse(RunConfig, settings)


def test_a_run_that_has_not_been(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder of a run"):
        Run.open(tmp_path, models.build)
    run = Run(replace(config, output=str(tmp_path / "run")), models.build)
    with pytest.raises(CheckpointError, match="a finished run"):
        run.bundle()
    for use in (run.trained, lambda: run.evaluate(config.logs.train)):
        with pytest.raises(CheckpointError, match="a trained run"):
            use()
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_opened_where_it_lies(config: RunConfig, tmp_path: Path) -> None:
    result = Run(replace(config, output=str(tmp_path / "run")), models.build).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    run = Run.open(tmp_path / "moved", models.build)
    assert run.files.result() == result
    assert config.logs.test is not None
    assert run.evaluate(config.logs.test) == pytest.approx(result["test"])
    model, bundle = run.trained(), run.bundle()
    batch = next(iter(ParquetLog(config.logs.test, run.schema).batches(100)))
    assert torch.equal(bundle.table(batch), model.table(batch))  # type: ignore[operator]
    assert bundle.lineage["logs"] == result["logs"]
    assert bundle.lineage["config"]["table"]["rows"] == 200
    assert bundle.columns == {"user_id": "string", "category": "string"}
    assert result["parameters"] == run.parameters(model)
    assert result["steps"] == 5
    (note,) = result["notes"]
    assert note.startswith("hint: only 5 steps;")
    assert run.train() == result


def test_a_run_is_opened_where_its_kernel_is_not(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was trained on a GPU, by a kernel it named, is evaluated and published on a host without one."""
    named = replace(config, output=str(tmp_path / "run"), table=replace(config.table, kernel="gpu"))
    result = Run(named, models.build).train()
    assert result["kernel"]["name"] == "gpu"
    monkeypatch.setattr("embstore.kernels.gpu.interpreted", lambda: False)
    assert config.logs.test is not None
    run = Run.open(tmp_path / "run", models.build)
    assert run.evaluate(config.logs.test) == pytest.approx(result["test"])
    assert run.trained().table.kernel.name == "cpu"
    assert run.bundle().table.num_rows == run.trained().table.num_rows


def test_a_log_without_a_label_trains_nothing(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a label to train on"):
        Run(replace(config, schema={"features": ["user_id"]}, output=str(tmp_path)), models.build)

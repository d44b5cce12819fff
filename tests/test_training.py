"""Training: what it learns, and that a killed run ends as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from embstore.checkpoints import Checkpoints
from embstore.config import parse
from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import CheckpointError, ConfigError, DataError, Interrupted, LogError
from embstore.kernels import TableOptimizer
from embstore.logs import ParquetLog
from embstore.metrics import auc
from embstore.normalization import StreamingNormalizer
from embstore.progress import Progress
from embstore.schema import Schema
from embstore.store import sha256_file
from embstore.synthetic import SyntheticLog
from embstore.training import Trainer, evaluate
from embstore.training_settings import TrainingSettings

SCRIPT = Path(__file__).with_name("killable.py")
LOG = SyntheticLog(rows=24_000, users=200, items=100)


class Head(nn.Module):
    """A linear model of its inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, dense_BD: torch.Tensor, embedded_BW: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([dense_BD, embedded_BW], dim=1)).squeeze(1)


SCHEMA = LOG.schema()


def _model(schema: Schema = SCHEMA, **table: object) -> CtrModel:
    embedding = UnifiedEmbedding(schema.features, 4000, 4, optimizer=TableOptimizer(learning_rate=0.1), **table)
    torch.manual_seed(0)
    return CtrModel(embedding, StreamingNormalizer(schema.dense), Head(embedding.width + len(schema.dense)))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    for name, days in (("train", (0, 6)), ("valid", (6, 7)), ("test", (7, 8))):
        LOG.write(folder / name, rows=LOG.day_rows(*days), rows_per_file=5_000)
    return folder


def _outcome(folder: Path) -> dict[str, str]:
    """Digests of everything a run ends with."""
    names = Checkpoints(folder / "checkpoints").names()
    files = [
        folder / "checkpoints" / name / file
        for name in names
        for file in ("table.safetensors", "dense.safetensors", "adam.safetensors")
    ]
    files += [folder / "metrics.jsonl", folder / "result.json"]
    return {str(path.relative_to(folder)): sha256_file(path).sha256 for path in files}


def _start(logs: Path, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(logs), str(folder)], env=environment, stderr=subprocess.PIPE
    )


def _finish(logs: Path, folder: Path) -> float:
    started = time.perf_counter()
    process = _start(logs, folder)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()
    return time.perf_counter() - started


def _kill_and_resume(logs: Path, folder: Path, kills: int, seconds: float, moments: random.Random) -> list[float]:
    """Start the run, kill -9 it at random moments until ``kills`` have hit it alive, then let it finish."""
    hits: list[float] = []
    while len(hits) < kills:
        moment = moments.uniform(0.3, 1.0) * seconds
        process = _start(logs, folder)
        time.sleep(moment)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if alive:
            hits.append(moment)
        else:  # it was faster than the first: begin again, sooner
            shutil.rmtree(folder)
            hits, seconds = [], 0.9 * seconds
    _finish(logs, folder)
    return hits


@pytest.mark.parametrize(
    ("kills", "runs"), [pytest.param(3, 1, id="few"), pytest.param(5, 4, marks=pytest.mark.slow, id="many")]
)
def test_killed_and_resumed_ends_bit_equal(logs: Path, tmp_path: Path, kills: int, runs: int) -> None:
    """kill -9 at random moments (4 x 5 in the slow variant): the same tables, weights, optimizer state and metrics."""
    _finish(logs, tmp_path / "warm")  # compiles what is cached for the others
    seconds = _finish(logs, tmp_path / "whole")
    expected = _outcome(tmp_path / "whole")
    moments = random.Random(time.time_ns())
    for number in range(runs):
        hits = _kill_and_resume(logs, tmp_path / f"killed-{number}", kills, seconds, moments)
        assert _outcome(tmp_path / f"killed-{number}") == expected, hits


def _interrupted_at(trainer: Trainer, step: int, train: ParquetLog, valid: ParquetLog | None = None) -> None:
    """Fit, and ask for a stop (as Ctrl-C does) in the given step."""
    before = trainer._step

    def counted(*arguments: object) -> torch.Tensor:
        out = before(*arguments)  # type: ignore[arg-type]
        if trainer.at.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return out

    trainer._step = counted  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"step {step}"):
        trainer.fit(train, valid)


def test_warnings_wait_until_it_is_known_where_the_metrics_go_on(logs: Path, tmp_path: Path) -> None:
    """The case: what was warned of before ``fit`` was cut off with the lines after the last checkpoint."""
    schema, settings = LOG.schema(), TrainingSettings(batch_size=500, evaluate_every=10, checkpoint_every=5)
    train = ParquetLog(str(logs / "train"), schema)
    _interrupted_at(Trainer(_model(schema), settings, tmp_path), 12, train)
    said: list[str] = []
    show = Progress()
    show.say = said.append  # type: ignore[method-assign]
    trainer = Trainer(_model(schema), settings, tmp_path, progress=show)
    metrics = tmp_path / "metrics.jsonl"
    before = metrics.read_bytes()
    trainer.warn("early")
    assert (metrics.read_bytes(), said) == (before, ["warning: early"])
    trainer.fit(train)
    trainer.warn("late")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    warnings = [(line["step"], line["warning"]) for line in lines if "warning" in line]
    assert warnings == [(12, "early"), (trainer.at.step, "late")]
    assert metrics.read_bytes().startswith(before)
    trainer.folder = metrics  # nothing can be written below a file
    trainer.warn("said all the same")
    assert said[-1] == "warning: said all the same"


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("step", [1, 7, 13, 23])
def test_interrupted_at_any_step_and_resumed_ends_bit_equal(logs: Path, tmp_path: Path, step: int, kernel: str) -> None:
    schema = LOG.schema()
    train, valid = ParquetLog(logs / "train", schema), ParquetLog(logs / "valid", schema)
    settings = TrainingSettings(batch_size=1500, epochs=2, evaluate_every=5, shuffle_window=4000)
    whole = _model(kernel=kernel)
    expected = Trainer(whole, settings, tmp_path / "whole").fit(train, valid)
    _interrupted_at(Trainer(_model(kernel=kernel), settings, tmp_path / "cut"), step, train, valid)
    resumed = _model(kernel=kernel)
    assert Trainer(resumed, settings, tmp_path / "cut").fit(train, valid) == expected
    for (name, one), (_, other) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def _killed_at(trainer: Trainer, step: int, train: ParquetLog) -> None:
    """Fit until a step and no further, without a word to the trainer."""
    before = trainer._step

    def counted(*arguments: object) -> torch.Tensor:
        if trainer.at.step == step:
            raise MemoryError
        return before(*arguments)  # type: ignore[arg-type]

    trainer._step = counted  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        trainer.fit(train)


class Spoken(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_checkpoints_by_the_clock_make_a_first_epoch_resumable(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One minute a look at the clock: the default of five is over within the epoch, which has no evaluation before."""
    train = ParquetLog(logs / "train", LOG.schema())
    whole, settings = _model(), TrainingSettings(batch_size=1000)
    Trainer(whole, replace(settings, checkpoint_minutes=None), tmp_path / "whole").fit(train)
    minutes = itertools.count()
    monkeypatch.setattr("embstore.training.monotonic", lambda: 60.0 * next(minutes))
    _killed_at(Trainer(_model(), settings, tmp_path / "cut"), 15, train)
    (name,) = Checkpoints(tmp_path / "cut" / "checkpoints").names()
    assert name == "step-00000014"
    resumed, spoken = _model(), Spoken()
    Trainer(resumed, settings, tmp_path / "cut", progress=spoken).fit(train)
    assert spoken.lines == ["going on from step 14 of 18"]
    Trainer(_model(), settings, tmp_path / "cut", progress=spoken).fit(train)
    assert spoken.lines[1:] == ["already finished, at step 18; --fresh (or another folder) trains it again"]
    for (key, one), (_, other) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(one, other), key


def test_a_run_goes_on_with_other_moments_of_checkpoints(logs: Path, tmp_path: Path) -> None:
    train = ParquetLog(logs / "train", LOG.schema())
    settings = TrainingSettings(batch_size=3000, checkpoint_every=1)
    spoken = Spoken()
    _killed_at(Trainer(_model(), settings, tmp_path, progress=spoken), 3, train)
    assert spoken.lines == []
    other = replace(settings, checkpoint_every=None, checkpoint_minutes=None)
    Trainer(_model(), other, tmp_path, progress=spoken).fit(train)
    assert spoken.lines == ["going on from step 3 of 6"]


def test_checkpoints_that_take_long_are_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(_model(), TrainingSettings(checkpoint_minutes=1), tmp_path)
    monkeypatch.setattr("embstore.training.monotonic", lambda: 0.0)
    assert trainer._next_save(took=2) == 60
    assert trainer._next_save(took=100) == 900


def test_it_learns(logs: Path, tmp_path: Path) -> None:
    schema = LOG.schema()
    train, test = ParquetLog(logs / "train", schema), ParquetLog(logs / "test", schema)
    model = _model()
    before = evaluate(model, test, 1000)["auc"]
    result = Trainer(model, TrainingSettings(batch_size=300, epochs=3, learning_rate=0.01), tmp_path).fit(train, test)
    assert result["auc"] > max(before, 0.5) + 0.1
    assert result["auc"] < LOG.bayes_auc(logs / "test")


def test_evaluation_does_not_depend_on_the_batch_size_and_matches_scores(logs: Path) -> None:
    schema = LOG.schema()
    log = ParquetLog(logs / "test", schema)
    model = _model().eval()
    results = [evaluate(model, log, size) for size in (7, 500, 100_000)]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)
    batch = next(iter(log.batches(100_000)))
    with torch.no_grad():
        logits = model(batch)
    assert results[2]["auc"] == auc(batch.label_B, logits)


def test_the_best_model_is_put_back_and_patience_ends_the_run(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = LOG.schema()
    train, valid = ParquetLog(logs / "train", schema), ParquetLog(logs / "valid", schema)
    scripted = iter([0.6, 0.8, 0.7, 0.75, 0.9])
    tables = []
    model = _model()
    trainer = Trainer(model, TrainingSettings(batch_size=3000, epochs=9, patience=2, schedule="plateau"), tmp_path)

    def fake(log: ParquetLog, *, label: str = "") -> dict[str, float]:
        tables.append(model.table.weight.clone())
        return {"auc": next(scripted)}

    monkeypatch.setattr(trainer, "evaluate", fake)
    trainer.fit(train, valid)
    assert trainer.at.best == 0.8
    assert trainer.at.factor == pytest.approx(0.01)
    assert len(tables) == 5  # four in training, and the last of the best model
    assert torch.equal(model.table.weight, tables[1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["valid_auc"] for line in lines] == [0.6, 0.8, 0.7, 0.75]


def test_linear_schedule_ends_at_zero(logs: Path, tmp_path: Path) -> None:
    train = ParquetLog(logs / "train", LOG.schema())
    trainer = Trainer(
        _model(), TrainingSettings(batch_size=3000, epochs=2, schedule="linear", learning_rate=1.0), tmp_path
    )
    rates = []
    before = trainer._step

    def watched(*arguments: object) -> torch.Tensor:
        out = before(*arguments)  # type: ignore[arg-type]
        rates.append((trainer.optimizer.param_groups[0]["lr"], trainer.model.table.learning_rate))
        return out

    trainer._step = watched  # type: ignore[method-assign]
    trainer.fit(train)
    steps = len(rates)
    assert [rate for rate, _ in rates] == pytest.approx([1 - i / steps for i in range(steps)])
    assert [rate for _, rate in rates] == pytest.approx([0.1 * (1 - i / steps) for i in range(steps)])


def test_a_folder_of_another_run_is_refused(logs: Path, tmp_path: Path) -> None:
    train = ParquetLog(logs / "train", LOG.schema())
    settings = TrainingSettings(batch_size=3000)
    Trainer(_model(), settings, tmp_path, identity="a").fit(train)
    with pytest.raises(CheckpointError, match="another run"):
        Trainer(_model(), settings, tmp_path, identity="b").fit(train)
    with pytest.raises(CheckpointError, match="another run"):
        Trainer(_model(), replace(settings, learning_rate=0.5), tmp_path, identity="a").fit(train)


def test_damaged_checkpoints_are_found_and_say_what_to_do(logs: Path, tmp_path: Path) -> None:
    train = ParquetLog(logs / "train", LOG.schema())
    settings = TrainingSettings(batch_size=3000)
    Trainer(_model(), settings, tmp_path).fit(train)
    (name,) = Checkpoints(tmp_path / "checkpoints").names()
    path = tmp_path / "checkpoints" / name / "table.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"table\.safetensors is damaged.*delete the folder"):
        Trainer(_model(), settings, tmp_path).fit(train)
    path.unlink()
    with pytest.raises(CheckpointError, match="delete the folder"):
        Trainer(_model(), settings, tmp_path).fit(train)


def test_divergence_is_an_error_and_keeps_the_last_checkpoint(logs: Path, tmp_path: Path) -> None:
    train = ParquetLog(logs / "train", LOG.schema())
    trainer = Trainer(_model(), TrainingSettings(batch_size=1000, checkpoint_every=2, learning_rate=3e38), tmp_path)
    with pytest.raises(DataError, match="diverged"):
        trainer.fit(train)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_sample_weights_weigh(tmp_path: Path) -> None:
    """Rows of weight 0 teach nothing: their labels are flipped here, and the model doesn't see it."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 5, 4000)
    weight = (generator.random(4000) < 0.5).astype(np.float32)
    label = np.where(weight > 0, x >= 3, x < 3).astype(np.int64)
    pq.write_table(pa.table({"x": x, "w": weight, "y": label}), tmp_path / "log.parquet")
    schema = Schema.from_dict({"label": "y", "weight": "w", "features": ["x"]})
    log = ParquetLog(tmp_path / "log.parquet", schema)
    model = _model(schema)
    result = Trainer(model, TrainingSettings(batch_size=100, epochs=3, learning_rate=0.05), tmp_path / "run").fit(
        log, log
    )
    assert result["auc"] > 0.99


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": -1}, "epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"schedule": "cosine"}, "constant"),
        ({"bach_size": 3}, "did you mean 'batch_size'"),
        ({"batch_size": 3.5}, "whole number"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes; expected more than 0"),
    ],
)
def test_settings_are_checked(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TrainingSettings, data)


def test_a_finished_run_does_not_take_another_log(logs: Path, tmp_path: Path) -> None:
    """It trained on one log: saying it had trained on another would publish a false lineage."""
    settings = TrainingSettings(batch_size=3000)
    Trainer(_model(), settings, tmp_path).fit(ParquetLog(logs / "train", SCHEMA))
    with pytest.raises(LogError, match="not the one"):
        Trainer(_model(), settings, tmp_path).fit(ParquetLog(logs / "test", SCHEMA))


def test_a_validation_log_of_one_class_is_an_error(logs: Path, tmp_path: Path) -> None:
    """Its AUC is NaN, which compares as better than nothing and never as worse."""
    clicks = pc.equal(pq.read_table(logs / "valid")["click"], 1)
    pq.write_table(pq.read_table(logs / "valid").filter(clicks), tmp_path / "valid.parquet")
    train, valid = ParquetLog(logs / "train", SCHEMA), ParquetLog(tmp_path / "valid.parquet", SCHEMA)
    with pytest.raises(
        DataError, match="auc on the validation log; expected rows of both labels; found 100% positives"
    ):
        Trainer(_model(), TrainingSettings(batch_size=3000), tmp_path / "run").fit(train, valid)


def test_gauc_needs_a_group_before_training_begins(logs: Path, tmp_path: Path) -> None:
    log = ParquetLog(logs / "valid", replace(SCHEMA, group=None))
    trainer = Trainer(_model(), TrainingSettings(metric="gauc"), tmp_path)
    with pytest.raises(ConfigError, match="group"):
        trainer.fit(log, log)
    assert trainer.at.step == 0

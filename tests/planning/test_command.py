"""``embstore plan``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import invoke
from planned import TEN_BILLION

from embstore.cli.plan import count
from embstore.errors import ConfigError, EmbstoreError
from embstore.planning import (
    MACHINES,
    Workload,
    cheapest,
    differences,
    machine,
    predict,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10e9", 10**10),
        ("10G", 10**10),
        ("10B", 10**10),
        ("1_000_000", 10**6),
        ("2.5M", 2_500_000),
        ("7", 7),
        ("1k", 1000),
    ],
)
def test_large_numbers_as_people_write_them(text: str, number: int) -> None:
    assert count("--rows", text) == number


@pytest.mark.parametrize("text", ["", "G", "1.5", "ten", "1e99", "nan", "inf", "1e-3", "0x10"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ConfigError, match="--rows; expected a whole number"):
        count("--rows", text)


def planned(*arguments: object) -> str:
    return invoke("plan", *arguments).output


def test_the_command_prints_the_plan_its_alternatives_and_its_assumptions() -> None:
    text = planned(
        "--rows", "10e9", "--dim", 64, "--world", 128, "--device", "cuda", "--skew", 1.05, "--inter-gbps", 25
    )
    for expected in (
        "10,000,000,000 rows x 64 fp32, rowwise_adagrad; 26 lookups x 4,096 samples a rank, Zipf 1.05",
        "128 ranks on 16 hosts (h100): fits",
        "exchange gradients",
        "limited by inter-host link",
        "smallest world, all rows in memory: 40 ranks on 5 hosts",
        "smallest world, fits: 16 ranks on 2 hosts (UVM)",
        "torchrec's planner",
        "it knows nothing of dedup",
        "1,024",
        "with UVM",
        "25 GB/s between hosts; collectives reach 70%",
    ):
        assert expected in text
    (rows,) = (line for line in text.splitlines() if line.startswith(" rows "))
    assert rows.split() == ["rows", "20.000"]


def test_the_command_plans_the_smallest_world_and_what_a_target_needs() -> None:
    text = planned("--rows", "10G", "--dim", 64, "--samples-per-second", "100M")
    assert "16 ranks on 2 hosts (h100): fits, with rows in host memory (UVM caching)" in text
    assert "rows in host memory only (160.000 of 256.000 GB a rank)" in text
    assert "smallest world, 100,000,000 samples/s: " in text
    assert "none; the fastest is" in planned("--rows", "10G", "--dim", 64, "--samples-per-second", "1e15")


def test_the_command_as_json(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps({"inter_gbps": 12.5, "link_share": 1.0}))
    flags = ["--rows", "10e9", "--dim", 64, "--world", 128, "--rates", rates, "--dense-parameters", "1e6"]
    answer = json.loads(planned(*flags, "--samples-per-second", "20e6", "--json"))
    work = Workload(rows=TEN_BILLION, dim=64, dense_parameters=10**6)
    on = machine("h100", {"inter_gbps": 12.5, "link_share": 1.0})
    found = predict(work, on, 128)
    assert answer["workload"]["rows"] == TEN_BILLION
    assert answer["machine"]["inter_gbps"] == 12.5
    assert answer["prediction"]["step_seconds"] == found.step_seconds
    assert answer["prediction"]["memory"] == found.memory
    assert answer["torchrec"]["fits"] is True
    assert answer["differences"] == differences(work, on, found)
    assert [each["world"] for each in answer["worlds"]] == [1 << power for power in range(11)]
    best = cheapest(work, on, samples_per_second=20e6)
    assert best.in_memory is not None
    assert best.fast_enough is not None
    assert answer["cheapest"] == {
        "in_memory": best.in_memory.world,
        "fits": best.anyhow.world,
        "samples_per_second": 20e6,
        "fast_enough": best.fast_enough.world,
        "fastest": best.fastest.world,
    }
    assert any("12.5 GB/s between hosts" in line for line in answer["assumptions"])


def test_the_command_reads_a_run_and_a_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text("label: y\nfeatures:\n  - {name: a, lookups: 2}\n  - {name: tags, max_length: 5, lookups: 3}\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"logs: {{train: none}}\nschema: {schema}\n"
        "table: {rows: 5000, dim: 16, dtype: float16, optimizer: {name: adagrad, l2: 0.1}}\n"
        "model: {name: dnn, hidden: [10], batch_norm: false}\ntraining: {batch_size: 300}\n"
    )
    flags = ("--device", "cpu", "--max-world", 4, "--json")
    work = json.loads(planned("--config", config, *flags))["workload"]
    network = (5 * 16 + 1) * 10 + 10 + 1
    expected = {
        "rows": 5000,
        "dim": 16,
        "dtype": "fp16",
        "optimizer": "adagrad",
        "lookups": 17,
        "outputs": 5,
        "batch": 300,
    }
    assert {key: work[key] for key in expected} == expected
    assert (work["l2"], work["tracked"], work["dense_parameters"]) == (True, False, network)
    answer = json.loads(planned("--config", config, "--rows", "1e6", "--lookups", 3, "--batch", "1k", *flags))
    assert [answer["workload"][key] for key in ("rows", "lookups", "batch")] == [10**6, 3, 1000]
    assert answer["machine"]["kind"] == "cpu"
    assert json.loads(planned("--schema", schema, "--rows", 9, "--dim", 4, *flags))["workload"]["lookups"] == 17


def test_a_cpu_plan_measures_this_host_and_takes_what_is_given() -> None:
    flags = ("--rows", "1e6", "--dim", 16, "--device", "cpu", "--max-world", 2, "--json")
    measured = json.loads(planned(*flags, "--ranks-per-host", 2))["machine"]
    assert measured["memory_gb"] == pytest.approx(_total_memory() / 2)
    assert 0.1 < measured["memory_gbps"] < 5000
    assert 0.001 < measured["gather_share"] <= 1
    given = json.loads(planned(*flags, "--memory-gb", 7, "--memory-gbps", 33))["machine"]
    assert (given["memory_gb"], given["memory_gbps"]) == (7, 33)
    assert given["stream_share"] == MACHINES["cpu"].stream_share


def _total_memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise AssertionError


def test_without_torchrec_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchrec.distributed.planner.types", None)
    text = planned("--rows", "1e6", "--dim", 16, "--max-world", 2)
    assert "torchrec's planner was not asked: torchrec can't be loaded" in text
    assert json.loads(planned("--rows", "1e6", "--dim", 16, "--max-world", 2, "--json"))["torchrec"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dim", 8), "--rows, or --config"),
        (("--rows", 0, "--dim", 8), "rows; expected 1 or more"),
        (("--rows", 10, "--dim", 6), "multiple of 4"),
        (("--rows", 10, "--dim", 8, "--world", 0), "world; expected 1 rank or more"),
        (("--rows", 10, "--dim", 8, "--max-world", 0), "max world; expected 1 rank or more"),
        (("--rows", 10, "--dim", 8, "--samples-per-second", 0), "samples per second; expected a number, more than 0"),
        (("--rows", 10, "--dim", 8, "--ranks-per-host", 0), "ranks_per_host"),
        (("--rows", "10e9", "--dim", 64, "--max-world", 4), "40 ranks would"),
    ],
)
def test_the_command_says_what_cannot_be(flags: tuple[object, ...], message: str) -> None:
    with pytest.raises(EmbstoreError, match=message):
        planned(*flags)

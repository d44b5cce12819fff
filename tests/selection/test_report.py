"""Reports of selections: areas, differences and choices known by construction; the page needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embstore.errors import ConfigError
from embstore.selection.report import Report, Trial, html, write_report

FULL = {seed: Trial(method="all", kept=1.0, seed=seed, valid=0.9, test=0.8) for seed in (0, 1)}


def _trial(method: str, kept: float, seed: int, valid: float, test: float) -> Trial:
    return Trial(method=method, kept=kept, seed=seed, valid=valid, test=test)


def _report() -> Report:
    trials = []
    for seed in FULL:
        for kept in (0.5, 0.25):
            trials.append(_trial("flat", kept, seed, 0.7, 0.8))
            trials.append(_trial("steep", kept, seed, 0.8, 0.5 + 0.3 * (kept - 0.25) / 0.75 + 0.02 * seed))
    return Report(title="rows <of> a log", trials=tuple(trials), full=FULL)


def test_areas_and_differences() -> None:
    report = _report()
    assert report.methods == ("flat", "steep")
    assert report.shares == (0.25, 0.5)
    assert report.aukc("flat") == pytest.approx([0.6, 0.6])
    # A line from AUC 1/2 at a quarter to 0.8 at all.
    assert report.aukc("steep")[0] == pytest.approx(0.3)
    assert report.difference("flat", 0.5) == pytest.approx([0, 0])
    assert report.difference("steep", 0.25) == pytest.approx([-0.3, -0.28])
    assert report.difference("flat", 0.25, to="steep") == pytest.approx([0.3, 0.28])
    assert report.best() == "steep"  # by validation, whatever the test log says
    assert report.best(["flat"]) == "flat"


def test_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = _report()
    write_report([report], tmp_path / "out")
    (told,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["methods"]["steep"]["kept"]["0.25"]["test"]["mean"] == pytest.approx(0.51)
    assert told["methods"]["steep"]["kept"]["0.25"]["test"]["deviation"] == pytest.approx(0.02 / 2**0.5)
    assert (told["best"], told["full"]["test"]["mean"]) == ("steep", pytest.approx(0.8))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page == html([report])
    assert "data:image/png;base64," in page
    assert "rows &lt;of&gt; a log" in page
    assert "<script" not in page
    assert "http" not in page


def test_what_is_no_report() -> None:
    report = _report()
    with pytest.raises(ConfigError, match="one of each method, share and seed"):
        Report(title="", trials=report.trials[1:], full=FULL)
    with pytest.raises(ConfigError, match="one of each"):
        Report(title="", trials=(*report.trials, report.trials[0]), full=FULL)
    with pytest.raises(ConfigError, match="above 0, below 1"):
        Report(title="", trials=(_trial("a", 1.0, 0, 0.5, 0.5), _trial("a", 1.0, 1, 0.5, 0.5)), full=FULL)
    with pytest.raises(ConfigError, match="flat"):
        report.quality("flt", 0.5)

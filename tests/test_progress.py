"""What a terminal shows of long work."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from embstore.progress import ConsoleProgress

ROWS = 1000


@pytest.fixture
def console() -> Console:
    return Console(width=80, force_terminal=True, file=io.StringIO())


@pytest.mark.parametrize("total", [560_000, 45_840_617])
def test_80_columns_hold_a_bar_and_all_its_numbers(console: Console, total: int) -> None:
    progress = ConsoleProgress(console)
    with progress("train", total) as bar, progress("evaluate", total) as inner:
        bar.step(ROWS, torch.arange(ROWS).float() % 2, torch.zeros(ROWS), 0.4321)
        inner.advance(3 * ROWS)
        (train, evaluate) = ("".join(s.text for s in line) for line in console.render_lines(progress.open()))
        progress.close()
    assert f"1000/{total}" in train
    assert "loss 0.4321 auc 0.5000" in train
    assert f"3000/{total}" in evaluate


def test_without_a_terminal_only_lines_are_printed() -> None:
    console = Console(file=io.StringIO())
    progress = ConsoleProgress(console)
    with progress("train", 10) as bar:
        bar.advance(5)
    progress.say("going on from [step] 5")
    assert console.file.getvalue() == "going on from [step] 5\n"


def test_a_bar_says_what_it_counts_and_what_is_noted(console: Console) -> None:
    progress = ConsoleProgress(console)
    with progress("train", 40) as bar:
        bar.unit = "walks"
        bar.note("loss 2.5000")
        bar.advance(10)
        (line,) = ("".join(s.text for s in line) for line in console.render_lines(progress.open()))
        progress.close()
    assert "10/40" in line
    assert "walks/s loss 2.5000" in line

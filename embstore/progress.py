"""What a person sees of long work: a bar in a terminal, plain lines elsewhere, nothing by default."""

from __future__ import annotations

import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from embstore.metrics import auc

_RECENT_ROWS = 100_000  # the running AUC is of about this many last rows
_AUC_EVERY = 1.0  # seconds between two computations of it


class Bar:
    """Shows nothing; the base of what does. A context manager. ``unit`` is what it counts."""

    unit = "rows"

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def resume(self, done: int) -> None:
        """Rows done before."""

    def advance(self, rows: int) -> None:
        """Rows done since the last call."""

    def note(self, text: str) -> None:
        """What to show beside the speed from the next call on."""

    def step(self, rows: int, label_B: torch.Tensor, logits_B: torch.Tensor, loss: float) -> None:
        """A training step of so many rows was done, and came to these logits (of this rank's part) and loss."""
        self.advance(rows)


class Progress:
    """Makes bars and shows records; this one shows nothing."""

    def __call__(self, label: str, total: int | None) -> Bar:
        """A bar for ``total`` rows, or for nobody knows how many."""
        return Bar()

    def say(self, text: str) -> None:
        """A line for the person who waits."""

    def record(self, values: dict[str, Any], folder: Path) -> None:
        """An evaluation's record was written."""

    def finish(self, folder: Path) -> None:
        """The run in that folder has ended, for now."""


no_progress = Progress()


class ConsoleProgress(Progress):
    """Bars on a terminal, one line per evaluation everywhere, curves for TensorBoard when it is installed.

    Args:
        console: where to; bars are only drawn when it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._writers: dict[Path, Any] = {}
        self._display: RichProgress | None = None
        self._depth = 0

    def __call__(self, label: str, total: int | None) -> Bar:
        if not self.console.is_terminal:
            return Bar()
        return _ConsoleBar(self, label, total)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def record(self, values: dict[str, Any], folder: Path) -> None:
        parts = [f"step {values['step']:,}", f"epoch {values['epoch']}", f"loss {values['train_loss']:.4f}"]
        shown = ("auc", "logloss", "gauc")
        parts += [
            f"valid {name} {values[f'valid_{name}']:.5f}" for name in shown if values.get(f"valid_{name}") is not None
        ]
        self.console.print("  ".join(parts), highlight=False, soft_wrap=True)
        writer = self._writer(folder, values["step"])
        if writer is not None:
            for name, value in values.items():
                if name not in ("step", "epoch") and value is not None:
                    writer.add_scalar(name, value, values["step"])
            writer.flush()

    def finish(self, folder: Path) -> None:
        writer = self._writers.pop(folder, None)
        if writer is not None:
            writer.close()

    def _writer(self, folder: Path, step: int) -> Any:
        if folder not in self._writers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError:
                    self._writers[folder] = None
                else:
                    self._writers[folder] = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        return self._writers[folder]

    def open(self) -> RichProgress:
        """The one live display; bars within bars share it."""
        if self._display is None:
            # The bar takes what the numbers leave, so that 80 columns hold them all.
            self._display = RichProgress(
                TextColumn("{task.description:>8}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=2)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
                console=self.console,
                transient=True,
                expand=True,
            )
            self._display.start()
        self._depth += 1
        return self._display

    def close(self) -> None:
        """The display goes when its last bar does."""
        self._depth -= 1
        if self._depth == 0 and self._display is not None:
            self._display.stop()
            self._display = None


class _ConsoleBar(Bar):
    def __init__(self, owner: ConsoleProgress, label: str, total: int | None) -> None:
        self.owner, self.label, self.total = owner, label, total
        self.recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self.recent_rows = 0
        self.shown_at = 0.0
        self.auc = float("nan")
        self.noted = ""

    def __enter__(self) -> Bar:
        self.display = self.owner.open()
        self.task = self.display.add_task(self.label, total=self.total, note="")
        self.started, self.done, self.before = time.perf_counter(), 0, 0
        return self

    def __exit__(self, *_: object) -> None:
        self.display.remove_task(self.task)
        self.owner.close()

    def resume(self, done: int) -> None:
        self.done = self.before = done
        self.display.update(self.task, completed=done)

    def advance(self, rows: int) -> None:
        self.done += rows
        self.display.update(self.task, completed=self.done, note=f"{self._speed()} {self.noted}".rstrip())

    def note(self, text: str) -> None:
        self.noted = text

    def step(self, rows: int, label_B: torch.Tensor, logits_B: torch.Tensor, loss: float) -> None:
        self.done += rows
        self.recent.append((label_B, logits_B))
        self.recent_rows += len(label_B)
        while self.recent_rows - len(self.recent[0][0]) > _RECENT_ROWS:
            self.recent_rows -= len(self.recent.popleft()[0])
        now = time.perf_counter()
        if now - self.shown_at > _AUC_EVERY:
            self.shown_at = now
            labels, logits = (torch.cat(part).cpu().numpy() for part in zip(*self.recent, strict=True))
            self.auc = auc(labels, logits) if np.isfinite(logits).all() else float("nan")
        self.display.update(self.task, completed=self.done, note=f"{self._speed()} loss {loss:.4f} auc {self.auc:.4f}")

    def _speed(self) -> str:
        return f"{(self.done - self.before) / max(time.perf_counter() - self.started, 1e-9):,.0f} {self.unit}/s"

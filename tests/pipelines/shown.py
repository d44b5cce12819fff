"""A progress that keeps what it was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from embstore.progress import Bar, Progress


class Shown(Progress):
    """``bars`` of ``(label, total)``, each with what it was told; ``lines``; ``records``; ``open`` bars right now."""

    def __init__(self) -> None:
        self.bars: list[ShownBar] = []
        self.lines: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.finished: list[Path] = []
        self.open = 0

    def __call__(self, label: str, total: int | None) -> Bar:
        self.bars.append(ShownBar(self, label, total))
        return self.bars[-1]

    def say(self, text: str) -> None:
        self.lines.append(text)

    def record(self, values: dict[str, Any], folder: Path) -> None:
        self.records.append(values)

    def finish(self, folder: Path) -> None:
        self.finished.append(folder)


class ShownBar(Bar):
    """Rows done, where it went on from, labels and logits."""

    def __init__(self, owner: Shown, label: str, total: int | None) -> None:
        self.owner, self.label, self.total = owner, label, total
        self.rows, self.before, self.loss = 0, 0, 0.0
        self.parts: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Bar:
        self.owner.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.owner.open -= 1

    def resume(self, done: int) -> None:
        self.before = done

    def advance(self, rows: int) -> None:
        self.rows += rows

    def step(self, rows: int, label_B: Tensor, logits_B: Tensor, loss: float) -> None:
        self.rows, self.loss = self.rows + rows, loss
        self.parts.append((label_B, logits_B))

"""A small loop over days that drift; in a process of its own ``python looped.py CONFIG DAY LABEL NUMBER``, which is
killed (kill -9) there: see ``Fatal``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from embstore.config import parse
from embstore.pipelines import loop
from embstore.pipelines.days import DayFolder
from embstore.pipelines.loop_settings import LoopSettings
from embstore.progress import Bar, Progress
from embstore.store import Store
from embstore.synthetic import SyntheticLog

DAYS = SyntheticLog(rows=6_000, days=3, users=150, items=120, drift=0.3)


def write_days(folder: Path) -> Path:
    """``day-1`` to ``day-3``."""
    for day in range(3):
        DAYS.write(folder / f"day-{day + 1}", rows=DAYS.day_rows(day, day + 1), rows_per_file=500)
    return folder


def settings(folder: Path, days: list[Path], **more: Any) -> dict[str, Any]:
    """With every stage there is."""
    return {
        "days": [str(day) for day in days],
        "schema": DAYS.schema().to_dict(),
        "time": "timestamp",
        "admit": {"min_count": 2},
        "collisions": 0.05,
        "node2vec": {
            "graph": {"pairs": [["user_id", "item_id"]], "weight": "click"},
            "walks": {"length": 10, "num_walks": 4},
            "skip_gram": {"dim": 4, "window": 3},
        },
        "select": {"rows": 256, "shuffle_window": 512},
        "prune": {"keep": 0.8},
        "table": {"dim": 4},
        "model": {"name": "dnn", "hidden": [8]},
        "training": {"batch_size": 500},
        "publish": {"store": str(folder / "store")},
        "output": str(folder / "loop"),
        **more,
    }


def run(folder: Path, days: list[Path], **more: Any) -> dict[str, Any]:
    """Do it here; ``workers`` and ``train_workers`` are the call's, all else are settings."""
    how = {name: more.pop(name) for name in ("workers", "train_workers") if name in more}
    return loop.run(parse(LoopSettings, settings(folder, days, **more)), **how)


def published(store: Path, version: str = "latest") -> dict[str, Any]:
    """Lengths and digests of all that a version holds: table, vocabulary, network, both optimizers' state."""
    files: dict[str, Any] = Store(store).open(version).manifest["files"]
    return files


class Fatal(Progress):
    """Kills this process within the work of a day.

    Args:
        day: the folder's name.
        label: of the bar whose step after ``number`` others is the last, or ``finish:STAGE``: when the work of that
            stage is done, and day.json doesn't say so yet.
    """

    def __init__(self, day: str, label: str, number: int) -> None:
        self._day, self._label, self._number = day, label, number
        self._now, finish = "", DayFolder.finish

        def finished(of: DayFolder, stage: str, **about: Any) -> Any:
            if (of.path.name, f"finish:{stage}") == (day, label):
                os.kill(os.getpid(), signal.SIGKILL)
            return finish(of, stage, **about)

        DayFolder.finish = finished  # type: ignore[method-assign]

    def __call__(self, label: str, total: int | None) -> Bar:
        return _FatalBar(self) if (self._now, label) == (self._day, self._label) else Bar()

    def say(self, text: str) -> None:
        if text.startswith("day-"):
            self._now = text.partition(":")[0]

    def step(self) -> None:
        """One step more."""
        self._number -= 1
        if self._number < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class _FatalBar(Bar):
    def __init__(self, of: Fatal) -> None:
        self._of = of

    def advance(self, rows: int) -> None:
        self._of.step()

    def step(self, *_: Any) -> None:
        self._of.step()


if __name__ == "__main__":
    path, day, label, number = sys.argv[1:]
    loop.run(parse(LoopSettings, json.loads(Path(path).read_text())), progress=Fatal(day, label, int(number)))

"""Selections on a cluster of their own whose tasks die once: ``python dying.py SETTINGS DEATHS WORKERS``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embstore.config import parse
from embstore.pipelines import judging, selection

TASKS = (
    (selection, "_encode"),
    (selection, "_count"),
    (selection, "_gradient"),
    (judging, "_read"),
    (judging, "_tried"),
)


def dies_once(function: Callable[..., Any], death: Path) -> Callable[..., Any]:
    """The function, of which the first worker that calls it dies; not the process that makes it."""
    here = os.getpid()

    def dying(*arguments: Any, **named: Any) -> Any:
        if os.getpid() != here and not death.exists():
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return function(*arguments, **named)

    return dying


if __name__ == "__main__":
    settings, deaths, workers = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3])
    for module, name in TASKS:
        setattr(module, name, dies_once(getattr(module, name), deaths / name))
    print(json.dumps([selection.select(parse(selection.SelectionSettings, of), workers=workers) for of in settings]))

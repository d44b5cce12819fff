"""A loop's folder: for each day's log a folder, and in it what each stage came to, done once.

    runs/loop/
      schema.yaml          what the columns mean, of all days
      day-0001/
        day.json           the log, the settings, and of each stage that is done what it came to
        vocabulary/  node2vec/  selection/  pruned/  run/        what the stages made
      day-0002/

What a stage makes counts when day.json has it; what a killed one has left is made again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embstore.errors import CheckpointError
from embstore.node2vec.settings import differing
from embstore.run_folder import make_output
from embstore.schema import Schema
from embstore.store.files import replace_small

FORMAT = 1
STAGES = ("evaluate", "vocabulary", "plan", "node2vec", "select", "prune", "train")
_MANIFEST, _SCHEMA = "day.json", "schema.yaml"
_DAY = re.compile(r"day-(\d{4,})")


class DayFolder:
    """The folder of one day.

    Args:
        path: made by ``claim``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self) -> dict[str, Any]:
        """What day.json holds; empty when there is none.

        Raises:
            CheckpointError: it can't be read.
        """
        path = self.path / _MANIFEST
        if not path.exists():
            return {}
        try:
            found = json.loads(path.read_bytes())
            if found["format"] == FORMAT and isinstance(found["stages"], dict):
                return dict(found)
            said = f"format {found['format']}"
        except (ValueError, KeyError, TypeError):
            said = "none"
        do = "delete the folder: the day is done again"
        raise CheckpointError(str(path), expected=f"a day of a loop, format {FORMAT}", found=said, do=do)

    def claim(self, log: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Make it the folder of a log, by these settings.

        Args:
            log: ``source``, ``fingerprint``, ``rows``.

        Raises:
            CheckpointError: it was begun with another log or other settings.
        """
        there, settings = self.manifest(), json.loads(json.dumps(settings))
        if there:
            changed = differing(settings, there["settings"])
            changed += ["the log"] * (log["fingerprint"] != there["log"]["fingerprint"])
            if changed and there["stages"]:
                expected, found = f"what {self.path / _MANIFEST} says", f"another {', '.join(changed)}"
                do = f"let the day end as it began, or delete {self.path} to begin it again"
                raise CheckpointError(f"{self.path} was begun", expected=expected, found=found, do=do)
            if not changed:
                return
        make_output(self.path)
        self._write({"format": FORMAT, "log": dict(log), "settings": settings, "stages": {}})

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a stage came to, if it is done."""
        found: dict[str, Any] | None = self.manifest().get("stages", {}).get(stage)
        return found

    def finish(self, stage: str, **about: Any) -> dict[str, Any]:
        """A stage is done."""
        manifest = self.manifest()
        manifest["stages"][stage] = about
        self._write(manifest)
        return about

    def room(self, name: str) -> Path:
        """Where a stage may make a folder; what a killed one has left there is gone."""
        shutil.rmtree(self.path / name, ignore_errors=True)
        return self.path / name

    def _write(self, manifest: Mapping[str, Any]) -> None:
        replace_small(self.path / _MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")


class LoopFolder:
    """The folder of a loop.

    Args:
        path: made when it is first written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def days(self) -> list[DayFolder]:
        """Those that were begun, the first one first."""
        if not self.path.is_dir():
            return []
        found = {int(of[1]): path for path in self.path.iterdir() if (of := _DAY.fullmatch(path.name))}
        days = [DayFolder(found[number]) for number in sorted(found)]
        return [day for day in days if day.manifest()]

    def next(self) -> DayFolder:
        """The folder of a new day."""
        days = self.days()
        number = 1 + (int(days[-1].path.name.removeprefix("day-")) if days else 0)
        return DayFolder(self.path / f"day-{number:04}")

    def schema(self) -> Schema | None:
        """What the columns mean, if a day was begun."""
        path = self.path / _SCHEMA
        return Schema.from_yaml(path) if path.exists() else None

    def write_schema(self, schema: Schema) -> None:
        """Keep what the columns mean."""
        make_output(self.path)
        replace_small(self.path / _SCHEMA, schema.to_yaml().encode())

    def clear(self) -> None:
        """Remove all days: only folders that a loop made."""
        for day in self.days():
            shutil.rmtree(day.path)
        (self.path / _SCHEMA).unlink(missing_ok=True)

"""What a part of the benchmark found, kept in the work folder until all are put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import environment

FIELDS: dict[str, Any] = {"signal_fields": 4, "mixed_fields": 4, "noise_fields": 24}
PLANTED: dict[str, Any] = {"columns": 1_000_000, "rows": 8192, **FIELDS}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some claims, and what they come from."""

    claims: Mapping[str, dict[str, Any]]
    samples: Mapping[str, Any]
    env: Mapping[str, Any] = field(default_factory=lambda: environment(("scipy", "scikit-learn")))

    def write(self, path: Path) -> None:
        """For ``read``; whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Part:
        """What was written."""
        return cls(**json.loads(path.read_text()))

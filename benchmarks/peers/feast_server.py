"""Feast's Python feature server with an SQLite online store: an entity, whose vector is one feature, Array(Float32).

Feast has an environment of its own, whose interpreter runs this file to make and fill the store; then ``feast serve``.

    FEAST_PYTHON benchmarks/peers/feast_server.py FOLDER      FOLDER has vectors.npy, float32 [values, dim]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = Path(os.environ.get("EMBSTORE_FEAST_PYTHON", "runs/feast/bin/python"))
_CONFIG = """\
project: shop
provider: local
registry: registry.db
online_store:
    type: sqlite
    path: online.db
offline_store:
    type: file
entity_key_serialization_version: 3
"""
_AT_ONCE = 5_000  # rows of one write
_NEVER = "1000000000"


def missing() -> str | None:
    """What there is to install, if anything."""
    if PYTHON.exists():
        return None
    return "not installed: Feast, whose interpreter EMBSTORE_FEAST_PYTHON names (benchmarks/peers/README.md)"


@contextmanager
def feast(folder: Path, vectors_VD: Any, *, workers: int) -> Iterator[Any]:
    """A running server that has the vectors of ``user_0``, ``user_1``, ..."""
    import numpy as np

    from benchmarks.load.servers import free_port, running

    folder.mkdir()
    np.save(folder / "vectors.npy", vectors_VD)
    environment = {**os.environ, "FEAST_USAGE": "False", "PYTHONPATH": ""}
    with (folder / "fill.log").open("wb") as log:
        filled = subprocess.run([PYTHON, __file__, folder], env=environment, stdout=log, stderr=log, check=False)
    if filled.returncode:
        raise RuntimeError((folder / "fill.log").read_text(errors="replace")[-2000:])
    port = free_port()
    command = [str(PYTHON.parent / "feast"), "--chdir", str(folder), "serve", "--port", str(port), "--no-access-log"]
    command += ["--workers", str(workers), "--max-requests", _NEVER, "--registry_ttl_sec", "3600"]
    with running(command, {"feast": port}, folder / "serve.log") as process:
        yield process


def fill(folder: Path) -> None:
    """Make the feature store; by Feast's interpreter."""
    from datetime import UTC, datetime

    import numpy as np
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Array, Float32

    vectors_VD = np.load(folder / "vectors.npy")
    (folder / "feature_store.yaml").write_text(_CONFIG)
    now = pd.Timestamp(datetime.now(UTC))
    head = pd.DataFrame({"user": ["user_0"], "vector": [vectors_VD[0]], "event_timestamp": [now]})
    head.to_parquet(folder / "vectors.parquet")
    source = FileSource(path=str(folder / "vectors.parquet"), timestamp_field="event_timestamp")
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    fields = [Field(name="vector", dtype=Array(Float32))]
    view = FeatureView(name="vectors", entities=[user], schema=fields, source=source, online=True)
    store = FeatureStore(repo_path=str(folder))
    store.apply([user, view])
    for start in range(0, len(vectors_VD), _AT_ONCE):
        rows = vectors_VD[start : start + _AT_ONCE]
        values = [f"user_{start + number}" for number in range(len(rows))]
        frame = pd.DataFrame({"user": values, "vector": list(rows), "event_timestamp": now})
        store.write_to_online_store("vectors", frame)


if __name__ == "__main__":
    fill(Path(sys.argv[1]))

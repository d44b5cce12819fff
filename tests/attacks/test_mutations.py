"""Manifests, compat files, safetensors headers and log entries, mutated at random and signed again.

Rule: whatever is in them, a reader refuses it with a ``StoreError`` or opens it whole; it takes no more than a second
and no memory to speak of.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from publisher import small_bundle

from embstore.errors import StoreError
from embstore.store import Store, Version
from embstore.store.local import LocalFiles

SCRIPT = Path(__file__).with_name("mutated.py")


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_harmless(count: int, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / str(seed)), str(count // 2), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    for process in processes:
        end = json.loads(process.communicate()[0])
        assert end["wrong"] == []
        assert end["refused"] + end["harmless"] == count // 2
        assert end["refused"] > end["harmless"] > 0


def test_a_message_is_short_whatever_it_quotes(tmp_path: Path) -> None:
    version = Store(tmp_path).publish(small_bundle())
    data = json.dumps({**version.manifest, "version": "x" * 1_000_000}).encode()
    (version.folder / "manifest.json").write_bytes(data)
    with pytest.raises(StoreError) as error:
        Version.open(LocalFiles(version.folder), version=version.id, digest=hashlib.sha256(data).hexdigest())
    assert len(str(error.value)) < 2000

"""Processes that publish and promote at once: no update is lost, and the log is one order that all of them saw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import pytest
from disk import check_store
from publisher import Publisher, said, small_bundle

from embstore.store import Store


@pytest.mark.parametrize(("processes", "each"), [(4, 5), pytest.param(16, 50, marks=pytest.mark.slow)])
def test_no_update_is_lost(processes: int, each: int, tmp_path: Path) -> None:
    root, publisher = tmp_path / "store", Publisher()
    end = publisher.order(root=str(root), verbs=["publish", "production"] * each, processes=processes)
    publisher.close()
    assert (end["done"], end["failed"]) == (processes, 0)
    # Numbers without gaps, every byte, and that each promotion names as ``was`` what the one before it set: the judge.
    found = check_store(root)
    words = [word for word in said(root) if word[0] != "begin"]
    published = [version for verb, version in words if verb == "publish"]
    promoted = [version for verb, version in words if verb == "production"]
    assert len(published) == len(promoted) == processes * each
    assert sorted(found.versions) == sorted(published)
    assert sorted(version for _, _, version in found.history) == sorted(promoted)
    # What a process did one after the other stands in the log in that order.
    entered = {version: number for number, version in enumerate(found.versions)}
    moved = {version: number for number, (_, _, version) in enumerate(found.history)}
    assert sorted(moved) == sorted(entered)
    assert found.aliases["production"] == found.history[-1][2]
    assert not [path.name for path in (root / "log").iterdir() if not path.name.endswith(".json")]
    assert not list((root / "versions").glob(".tmp-*"))


def test_a_listing_that_misses_an_entry_shows_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder read in several parts, while others write, may show entry n + 1 but not n: seen with 800 entries."""
    store, list_objects = Store(tmp_path), obstore.list
    ids = [store.publish(small_bundle(seed)).id for seed in range(3)]

    def hasty(*args: Any, **options: Any) -> Any:
        for chunk in list_objects(*args, **options):
            yield [meta for meta in chunk if "000000000002" not in meta["path"]]

    monkeypatch.setattr(obstore, "list", hasty)
    assert [info.id for info in Store(tmp_path).versions()] == ids


FORKED = """
import os, signal, sys
from publisher import small_bundle
from embstore.errors import StoreError
from embstore.store import Store

store = Store(sys.argv[1])
store.publish(small_bundle())
child = os.fork()
if not child:
    signal.alarm(3)
    try:
        Store(sys.argv[1]).versions()
    except StoreError:
        pass
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


def test_a_fork_of_a_process_that_used_a_store_works_or_says_why_not(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert not subprocess.run([sys.executable, "-c", FORKED, str(tmp_path / "store")], env=environment).returncode

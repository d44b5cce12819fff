"""Verifying versions that lie on one another, and while gc takes them. What is found of each is in test_commands."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publisher import small_bundle

from embstore.errors import CorruptVersionError, VersionNotFoundError
from embstore.store import Bundle, Change, Store
from embstore.store.local import LocalFiles
from embstore.store.manifest import MAX_DEPTH

MakeBundle = Callable[..., Bundle]


def test_a_ref_that_gc_collects_meanwhile_is_said_to_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    old, _ = store.publish(small_bundle(0)), store.publish(small_bundle(1))
    digest, collected = LocalFiles.digest, []

    def later(self: LocalFiles, name: str) -> Any:
        if not collected:
            collected.extend(Store(tmp_path).gc(keep=1).retired)
        return digest(self, name)

    for verify in (lambda: store.verify(old.id), lambda: store.verify_all([old.id])):
        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "digest", later)
            with pytest.raises(VersionNotFoundError, match=f"{old.id} was collected on"):
                verify()
    assert collected == [old.id]
    assert len(store.verify_all()) == 1


def test_verify_reads_each_file_of_a_chain_once(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    chain = [store.publish(make_bundle())]
    chain += [store.publish(make_bundle(seed=seed), change=Change(base=chain[0])) for seed in (1, 2)]
    digest, read = LocalFiles.digest, list[str]()

    def counted(self: LocalFiles, name: str) -> Any:
        read.append(f"{self.folder.name}/{name}")
        return digest(self, name)

    monkeypatch.setattr(LocalFiles, "digest", counted)
    store.verify(chain[2].id)
    assert len(read) == len(set(read)) == sum(len(version.files) + 1 for version in (chain[0], chain[2]))


def chain_of(make_bundle: MakeBundle, store: Store, deltas: int) -> list[str]:
    """A whole version, and deltas each of the one before: as whoever writes the log could make them, however many."""
    base = store.publish(make_bundle())
    version = store.publish(make_bundle(seed=1), change=Change(base=base))
    entry = json.loads((store.root / "log/000000000002.json").read_bytes())
    manifest, out, digest = version.manifest, [base.id], base.digest
    for number in range(2, deltas + 2):
        new = f"20260101T000000Z-{number:08x}"
        folder = store.root / "versions" / new
        for name in version.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(version.folder / name, folder / name)
        delta = {**manifest["delta"], "base": out[-1], "base_digest": digest, "depth": min(number - 1, MAX_DEPTH)}
        data = json.dumps({**manifest, "version": new, "parent": out[-1], "delta": delta}).encode()
        (folder / "manifest.json").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        said = {**entry, "number": number, "version": new, "manifest_sha256": digest, "parent": out[-1]}
        (store.root / f"log/{number:012d}.json").write_text(json.dumps(said))
        out.append(new)
    return out


def test_a_chain_of_more_deltas_than_a_reader_takes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Each lies on the one before: following them by recursion went deeper than Python does."""
    chain = chain_of(make_bundle, Store(tmp_path), 1100)
    store = Store(tmp_path)
    with pytest.raises(CorruptVersionError, match=rf"{chain[-1]}.*expected at most {MAX_DEPTH} deltas .*found more"):
        store.verify(chain[-1])
    for depth in (MAX_DEPTH, MAX_DEPTH + 1):
        found = store.verify_all([chain[depth]])
        assert found[-1].version == chain[depth]
        assert found[-1].whole == (depth <= MAX_DEPTH)

"""The commands that keep a store: ``versions``, ``verify``, ``tag``, ``untag``, ``diff``, ``gc``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import output

from embstore.cli import cli
from embstore.errors import CorruptVersionError, StoreError
from embstore.store import Bundle, Change, Store, Version
from embstore.store.listing import _marked
from embstore.store.local import LocalFiles

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def versions(make_bundle: MakeBundle, tmp_path: Path) -> list[Version]:
    """Three, each the parent of the next."""
    store, out = Store(tmp_path), []
    for seed in range(3):
        lineage = {"space": out[-1].space} if out else {}
        parent = out[-1].id if out else None
        out.append(store.publish(make_bundle(seed=seed, lineage=lineage), parent=parent))
    return out


def read(*arguments: object) -> Any:
    return json.loads(output(*arguments, "--json"))


def damage(version: Version) -> None:
    path = version.folder / "table" / "bucket-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_tags_are_put_on_shown_and_taken_off(versions: list[Version], tmp_path: Path) -> None:
    first = versions[0].id
    assert read("tag", "spring", first, "--store", tmp_path) == {"tag": "spring", "version": first}
    assert output("tag", "summer", "spring", "--store", tmp_path) == f"summer is {first}\n"
    listed = read("versions", "--store", tmp_path)
    assert [row["tags"] for row in listed] == [[], [], ["spring", "summer"]]
    assert [row["parent"] for row in listed] == [versions[1].id, first, None]
    assert "spring summer" in output("versions", "--store", tmp_path)
    entries = len(list((tmp_path / "log").iterdir()))
    assert output("tag", "spring", first[:-1], "--store", tmp_path) == f"spring is already {first}\n"
    assert len(list((tmp_path / "log").iterdir())) == entries
    with pytest.raises(StoreError, match="found a tag of"):
        output("tag", "spring", "latest", "--store", tmp_path)
    assert output("untag", "summer", "--store", tmp_path) == f"summer is no longer {first}\n"
    assert read("untag", "spring", "--store", tmp_path) == {"tag": "spring", "version": first}
    assert Store(tmp_path).tags() == {}


def test_a_damaged_version_is_listed_with_the_others(versions: list[Version], tmp_path: Path) -> None:
    (versions[1].folder / "schema.yaml").unlink()
    listed = read("versions", "--store", tmp_path)
    assert [row["damaged"] is None for row in listed] == [True, False, True]
    assert "schema.yaml" in listed[1]["damaged"]
    assert listed[1] | {"damaged": None} == {
        "version": versions[1].id,
        "created": versions[1].manifest["created"],
        "aliases": [],
        "tags": [],
        "parent": versions[0].id,
        **dict.fromkeys(("table", "delta", "bytes", "model", "node2vec", "lineage", "auc", "damaged")),
    }
    assert listed[0]["auc"] == {"valid": 0.75, "test": None}
    text = output("versions", "--store", tmp_path)
    assert all(version.id in text for version in versions)
    assert f"damaged: {versions[1].folder}/schema.yaml" in text


def test_verify_finds_the_damaged_one(versions: list[Version], tmp_path: Path) -> None:
    assert read("verify", "--store", tmp_path) == [{"version": versions[2].id, "damaged": None, "depends_on": None}]
    assert output("verify", "--all", "--store", tmp_path).count("whole") == 3
    damage(versions[1])
    assert output("verify", versions[0].id, "--store", tmp_path) == f"{versions[0].id}  whole\n"
    with pytest.raises(CorruptVersionError, match="1 of 1 versions"):
        output("verify", versions[1].id, "--store", tmp_path)
    result = CliRunner().invoke(cli, ["verify", "--all", "--json", "--store", str(tmp_path)])
    assert isinstance(result.exception, CorruptVersionError)
    found = json.loads(result.stdout)
    assert [one["version"] for one in found] == [version.id for version in versions]
    assert [one["damaged"] is None for one in found] == [True, False, True]
    assert "bucket-00000" in found[1]["damaged"]
    result = CliRunner().invoke(cli, ["verify", "--all", "--store", str(tmp_path)])
    assert result.stdout.count("whole") == 2


def chain(make_bundle: MakeBundle, store: Store) -> tuple[Version, Version, Version, Version]:
    """A version, a delta of it, a delta of that, and another version."""
    out = [store.publish(make_bundle())]
    for row in (3, 5):
        rows_ND = out[-1].table.read_rows(0, 40).clone()
        rows_ND[row] += 1
        out.append(store.publish(make_bundle(rows_ND=rows_ND), change=Change(base=out[-1])))
    first, second, third = out
    return first, second, third, store.publish(make_bundle(seed=1))


def test_one_damaged_file_is_one_cause(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case: deltas of a damaged version were counted as damaged, and its files read again for each of them."""
    base, delta, above, other = chain(make_bundle, Store(tmp_path))
    read_files, digest = [], LocalFiles.digest

    def counted(self: LocalFiles, name: str) -> Any:
        read_files.append(f"{self.folder.name}/{name}")
        return digest(self, name)

    monkeypatch.setattr(LocalFiles, "digest", counted)
    assert [one["version"] for one in read("verify", above.id, "--store", tmp_path)] == [base.id, delta.id, above.id]
    read_files.clear()
    assert all(one["damaged"] is one["depends_on"] is None for one in read("verify", "--all", "--store", tmp_path))
    assert len(read_files) == len(set(read_files)) == sum(len(each.files) + 1 for each in (base, delta, above, other))
    damage(base)
    result = CliRunner().invoke(cli, ["verify", "--all", "--store", str(tmp_path)])
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert lines[base.id].startswith(f"damaged: {base.folder}/table/bucket-00000.safetensors; ")
    assert lines[base.id].endswith(f"; {delta.id}, {above.id} depend on it")
    assert lines[delta.id] == lines[above.id] == f"can't be read: it depends on {base.id}"
    assert lines[other.id] == "whole"
    assert isinstance(result.exception, CorruptVersionError)
    assert str(result.exception).startswith(
        "1 of 4 versions; expected whole; found damaged, and 2 more based on what is; restore the files"
    )
    assert "verify" not in str(result.exception)
    result = CliRunner().invoke(cli, ["verify", "--json", "--store", str(tmp_path), delta.id])
    assert [(one["damaged"] is None, one["depends_on"]) for one in json.loads(result.stdout)] == [
        (False, None),
        (True, base.id),
    ]


def test_verifying_goes_on_after_any_error(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    base, delta, above, other = chain(make_bundle, store)
    path = delta.folder / "delta/rows.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    read_digest = LocalFiles.digest

    def digest(self: LocalFiles, name: str) -> Any:
        if self.folder.name == other.id:
            raise StoreError("no network")
        return read_digest(self, name)

    monkeypatch.setattr(LocalFiles, "digest", digest)
    found = {finding.version: finding for finding in store.verify_all()}
    assert list(found) == [base.id, delta.id, above.id, other.id]
    assert found[base.id].whole
    assert isinstance(found[delta.id].error, CorruptVersionError)
    assert (found[above.id].error, found[above.id].below) == (None, delta.id)
    assert str(found[other.id].error) == "no network"
    with pytest.raises(StoreError, match="1 of 1 versions; expected whole; found some that can't be read") as raised:
        output("verify", other.id, "--store", tmp_path)
    assert not isinstance(raised.value, CorruptVersionError)
    shutil.rmtree(base.folder)
    found = {finding.version: finding for finding in store.verify_all()}
    assert found[base.id].error is not None
    assert found[delta.id].error is not None  # its own file is damaged as well
    assert found[above.id].below == delta.id


@pytest.mark.parametrize("damage", ["gone", "manifest"])
def test_a_delta_of_a_damaged_version_is_listed_as_such(damage: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    base, delta, above, other = chain(make_bundle, Store(tmp_path))
    if damage == "gone":
        shutil.rmtree(base.folder)
    else:
        (base.folder / "manifest.json").write_text("{}")
    listed = {row["version"]: row["damaged"] for row in read("versions", "--store", tmp_path)}
    assert base.id in listed[base.id]
    assert listed[delta.id] == f"a delta of {base.id}, which is damaged"
    assert listed[above.id] == f"a delta of {delta.id}, which is damaged"
    assert listed[other.id] is None
    missing = {"version": "b", "delta": {"base": "a"}, "damaged": None}
    assert _marked([missing])[0]["damaged"] == "a delta of a, which is not in the store"
    text = output("versions", "--store", tmp_path)
    assert f"{above.id} damaged: a delta of {delta.id}" in text
    assert " rows" not in text


def test_gc_says_what_it_would_do_and_does_it(versions: list[Version], tmp_path: Path) -> None:
    first, second, third = (version.id for version in versions)
    Store(tmp_path).tag("spring", first)
    found = read("gc", "--dry-run", "--keep", 1, "--store", tmp_path)
    assert found["dry_run"] is True
    assert found["retired"] == [second]
    assert found["kept"] == {first: ["tag spring"], third: ["alias latest", "among the last 1"]}
    size = sum(path.stat().st_size for path in versions[1].folder.rglob("*") if path.is_file())
    assert found["bytes"] == size
    text = output("gc", "--dry-run", "--keep", 1, "--store", tmp_path)
    assert "would go" in text
    assert "tag spring" in text
    assert len(Store(tmp_path).versions()) == 3
    assert read("gc", "--keep", 1, "--store", tmp_path) == found | {"dry_run": False}
    assert [info.id for info in Store(tmp_path).versions()] == [first, third]
    assert "0 bytes freed" in output("gc", "--keep", 1, "--store", tmp_path)
    assert read("versions", "--store", tmp_path)[0]["parent"] == second  # where it came from
    Store(tmp_path).lease(first, seconds=60, holder="[/red] me")
    assert "leased by [/red] me until" in output("gc", "--dry-run", "--store", tmp_path)


def test_diff_shows_what_changed(versions: list[Version], make_bundle: MakeBundle, tmp_path: Path) -> None:
    first, _, third = (version.id for version in versions)
    found = read("diff", first, "latest", "--store", tmp_path)
    assert (found["old"], found["new"], found["steps"]) == (first, third, 2)
    assert (found["rows"]["rows"], found["rows"]["changed"]) == (40, 40)
    text = output("diff", first, third, "--store", tmp_path)
    assert f"{third}  descends from it, 2 versions on\n" in text
    assert f"{third}  its child\n" in output("diff", versions[1].id, third, "--store", tmp_path)
    same = output("diff", third, "latest", "--store", tmp_path)
    assert f"old  {third}\nnew  {third}  the same version\n" in same
    assert "valid.auc" in text
    assert f"{found['rows']['max']:.4g}" in text
    wide = Store(tmp_path).publish(make_bundle(dim=6, model={**versions[0].manifest["model"], "widths": [12, 6, 6]}))
    text = output("diff", first, wide.id, "--store", tmp_path)
    assert "does not descend" in text
    assert "another space" in text
    assert "table.dim" in text
    assert "can't be compared: 3 numbers a row, now 6" in text


def test_diff_leaves_out_metrics_of_a_log_that_nothing_was_measured_on(
    versions: list[Version], make_bundle: MakeBundle, tmp_path: Path
) -> None:
    Store(tmp_path).publish(make_bundle(metrics={"valid": {}}))
    found = read("diff", versions[0].id, "latest", "--store", tmp_path)
    assert found["metrics"] == {"valid.auc": [0.75, None], "valid.gauc": [None, None]}


@pytest.mark.parametrize(
    "arguments",
    [["verify"], ["verify", "--all"], ["gc"], ["tag", "a", "latest"], ["untag", "a"], ["diff", "a", "b"]],
    ids=" ".join,
)
def test_a_store_that_is_not_there(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere; expected a folder"):
        output(*arguments, "--store", tmp_path / "nowhere")

"""A disk that fails, one that forgets what was not fsynced, and one that flips bits."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore.exceptions
import pytest
import torch
from disk import OBJECTS, READS, Call, check_store, intercepted
from publisher import small_bundle

from embstore.errors import CorruptVersionError, StoreError
from embstore.store import SafetensorsWriter, Store, local
from embstore.store.files import make_folder

Failure = Callable[[Call], Any]


def _failing(number: int) -> Failure:
    def fail(call: Call) -> Any:
        if call.name in OBJECTS:  # obstore wraps what the system says in an error of its own
            raise obstore.exceptions.GenericError(f"Generic LocalFileSystem error: {os.strerror(number)}")
        raise OSError(number, os.strerror(number))

    return fail


def _torn(call: Call) -> Any:
    """Half is written, then the disk is full."""
    if call.name == "write":
        call.run(len(call.data) // 2)
    return _failing(errno.ENOSPC)(call)


FAILURES = {
    "full": _failing(errno.ENOSPC),
    "broken": _failing(errno.EIO),
    "interrupted": _failing(errno.EINTR),
    "torn": _torn,
}


def _prepared(root: Path) -> Store:
    """A store with something to lose: two versions, an alias that moved."""
    store = Store(root)
    for seed in range(2):
        store.promote(store.publish(small_bundle(seed)).id)
    return Store(root)


def _fail_each_call(
    root: Path, act: Callable[[Store], Any], failure: Failure, *, counts: Callable[[Call], bool]
) -> tuple[int, int]:
    """Let each call of ``act`` fail in turn; the numbers of calls and of errors."""
    shutil.rmtree(root, ignore_errors=True)
    _prepared(root / "original")
    errors = 0
    for step in itertools.count(1):
        path, seen, lock = root / str(step), 0, threading.Lock()
        shutil.copytree(root / "original", path)
        store, before, descriptors = Store(path), check_store(path), len(os.listdir("/dev/fd"))

        def react(call: Call) -> Any:
            nonlocal seen
            if not counts(call):
                return call.run()
            with lock:  # noqa: B023
                seen += 1
                mine = seen == step  # noqa: B023 - called before the loop goes on
            return failure(call) if mine else call.run()

        failed = False
        with intercepted(path, react):
            try:
                act(store)
            except StoreError:
                failed = True
        if seen < step:
            return step - 1, errors
        errors += failed
        assert len(os.listdir("/dev/fd")) <= descriptors, "a descriptor was left open"
        after = check_store(path, set(before.versions))
        assert after.versions[:2] == before.versions
        assert len(after.versions) <= 3
        either = store if step % 2 else Store(path)  # the one that failed, or one that knows nothing of it
        new = either.publish(small_bundle(9))
        either.promote(new.id)
        assert check_store(path, set(after.versions)).aliases["production"] == new.id
        shutil.rmtree(path)
    raise AssertionError


def _changes(call: Call) -> bool:
    return call.name not in READS and call.name not in ("unlink", "rmdir")  # what tidies up may fail in silence


def _publish(store: Store) -> None:
    store.publish(small_bundle(5))


def _promote(store: Store) -> None:
    store.promote(store.versions()[0].id)


def _roll_back(store: Store) -> None:
    store.rollback()


@pytest.mark.parametrize(
    "failure", ["torn", "interrupted", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "broken"))]
)
@pytest.mark.parametrize(
    "act",
    [_publish, _promote, _roll_back],
    ids=lambda act: act.__name__,
)
def test_every_change_may_fail(act: Callable[[Store], Any], failure: str, tmp_path: Path) -> None:
    """The call ends in a StoreError with nothing half done, and the next one works."""

    def counts(call: Call) -> bool:
        # Python itself repeats a write that a signal interrupted.
        return _changes(call) and not (failure == "interrupted" and call.name == "write")

    calls, errors = _fail_each_call(tmp_path / "store", act, FAILURES[failure], counts=counts)
    assert errors == calls > (20 if act is _publish else 3)


@pytest.mark.parametrize(
    "act",
    [
        _publish,
        _promote,
        _roll_back,
        lambda store: store.verify(),
        lambda store: store.open(),
    ],
    ids=["publish", "promote", "rollback", "verify", "open"],
)
def test_every_read_may_fail(act: Callable[[Store], Any], tmp_path: Path) -> None:
    calls, errors = _fail_each_call(tmp_path / "store", act, FAILURES["broken"], counts=lambda call: call.name in READS)
    assert errors == calls > 5


def test_short_writes_and_reads_are_gone_on_with(tmp_path: Path) -> None:
    """A call may do less than it was asked to; that is no error, and no byte is lost."""

    def react(call: Call) -> Any:
        return call.run(min(len(call.data), 7)) if call.name == "write" else call.run()

    with intercepted(tmp_path, react):
        Store(tmp_path).publish(small_bundle())
    assert len(check_store(tmp_path).versions) == 1


def _dropped(call: Call) -> int:
    """Said to be written, but it isn't."""
    return len(call.data)


def _cut(call: Call) -> int:
    """Half of it reaches the file."""
    call.run(len(call.data) // 2)
    return len(call.data)


def _flipped(call: Call) -> int:
    """One bit of it is another."""
    done: int = call.run()
    number = os.open(call.path, os.O_RDWR)
    at = os.fstat(number).st_size - 1
    (byte,) = os.pread(number, 1, at)
    os.pwrite(number, bytes([byte ^ 1]), at)
    os.close(number)
    return done


@pytest.mark.parametrize("fault", [_dropped, _cut, _flipped], ids=lambda fault: fault.__name__)
def test_writes_that_lie_are_found_before_the_version_exists(fault: Callable[[Call], int], tmp_path: Path) -> None:
    """The disk reports no error; reading back finds it, in whichever file of a version."""
    paths = set()
    for step in itertools.count(1):
        root, seen, lock = tmp_path / str(step), 0, threading.Lock()

        def react(call: Call) -> Any:
            nonlocal seen
            if call.name != "write" or "versions" not in call.path.parts:
                return call.run()
            with lock:  # noqa: B023
                seen += 1
                mine = seen == step  # noqa: B023 - called before the loop goes on
            if mine:
                paths.add(call.path.name)
            return fault(call) if mine else call.run()

        found = None
        with intercepted(root, react):
            try:
                Store(root).publish(small_bundle())
            except CorruptVersionError as error:
                found = error
        if seen < step:
            assert found is None
            break
        assert found is not None, paths
        assert not Store(root).versions()
    assert len(paths) == 6


LIMITED = """
import json, os, resource, signal, sys
from publisher import small_bundle
from embstore.errors import CorruptVersionError, StoreError
from embstore.store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file over the limit is then an error of write
store, ends = Store(sys.argv[1]), []
store.publish(small_bundle(rows=3000))

def limited(kind, limit):
    _, hard = resource.getrlimit(kind)
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        return store.publish(small_bundle(rows=3000)).id
    except StoreError:
        return None
    finally:
        resource.setrlimit(kind, before)

for size in (*range(0, 50_000, 5_000), 1_000_000):
    ends.append(limited(resource.RLIMIT_FSIZE, size))
open_now = 1 + max(int(name) for name in os.listdir("/dev/fd"))
for more in range(20):
    ends.append(limited(resource.RLIMIT_NOFILE, open_now - 1 + more))
print(json.dumps(ends))
"""


def test_limits_that_the_system_enforces(tmp_path: Path) -> None:
    """No patched function here: files that may not grow, and no descriptors left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    ends = json.loads(result.stdout)
    assert check_store(tmp_path / "store").versions[1:] == [version for version in ends if version]
    assert ends[0] is None
    assert ends[10]
    assert ends[11] is None
    assert ends[-1]


def test_a_writer_that_fails_at_its_header_leaves_no_file(tmp_path: Path) -> None:
    def react(call: Call) -> Any:
        return _failing(errno.ENOSPC)(call) if call.name == "write" else call.run()

    with intercepted(tmp_path, react), pytest.raises(StoreError, match=r"/x; .*No space"):
        SafetensorsWriter(tmp_path / "x", {"rows": (torch.float32, (2,))}, alignment=16 << 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("name", ["open to write", "write", "fsync", "preadv"])
def test_a_publish_that_fails_names_the_file_and_leaves_nothing(name: str, number: int, tmp_path: Path) -> None:
    def react(call: Call) -> Any:
        return _failing(number)(call) if call.name == name and call.path.name == "dense.safetensors" else call.run()

    root = tmp_path / "store"
    with intercepted(root, react), pytest.raises(StoreError, match=rf"dense\.safetensors; .*{os.strerror(number)}"):
        Store(root).publish(small_bundle())
    assert not list(root.iterdir())


def test_files_without_tensors_are_named_too(tmp_path: Path) -> None:
    def react(call: Call) -> Any:
        return _torn(call) if call.name == "write" and call.path.name == "manifest.json" else call.run()

    with (
        intercepted(tmp_path, react),
        pytest.raises(StoreError, match=r"No space.*manifest\.json'; it was not published"),
    ):
        Store(tmp_path).publish(small_bundle())


def test_a_first_publish_that_fails_leaves_another_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the other has its folder yet, or is just about to make it."""
    store = Store(tmp_path)
    one, two = (store.place.stage(f"20260101T000000Z-0000000{digit}") for digit in "ab")
    store.place.discard(one)
    assert two.is_dir()
    store.place.discard(two)
    assert not list(tmp_path.iterdir())
    made = []

    def make(path: Path) -> None:
        make_folder(path)
        if not made:
            path.rmdir()
        made.append(path)

    monkeypatch.setattr(local, "make_folder", make)
    assert store.place.stage("20260101T000000Z-0000000c").is_dir()
    assert len(made) == 2


# --- A power cut -----------------------------------------------------------------------------------------------------


class _File:
    """Bytes as programs see them, and those that an fsync has made last."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.durable = data, b""


class _Folder:
    """Names that an fsync of the folder has made last; changes since are pending."""

    def __init__(self) -> None:
        self.names: dict[str, _File | _Folder] = {}
        self.durable: dict[str, _File | _Folder] = {}
        self.pending: list[dict[str, _File | _Folder | None]] = []

    def change(self, **names: _File | _Folder | None) -> None:
        """One atomic change: names set, and removed where ``None``."""
        _apply(self.names, names)
        self.pending.append(names)

    def after(self, kept: Callable[[], bool]) -> dict[str, _File | _Folder]:
        """Names on the disk when of the pending changes only those that are ``kept`` had reached it."""
        names = dict(self.durable)
        for change in self.pending:
            if kept():
                _apply(names, change)
        return names


def _apply(names: dict[str, Any], change: dict[str, Any]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class ForgetfulDisk:
    """What POSIX promises of a disk: contents last after the file's fsync, names after their folder's, else perhaps.

    Args:
        root: a folder that exists and lasts.
        cut: called after every call that changed something.
    """

    def __init__(self, root: Path, cut: Callable[[], None]) -> None:
        self.root, self.top, self.cut = root, _Folder(), cut

    def react(self, call: Call) -> Any:
        """Make the call and note what it did."""
        result = call.run()
        if call.name in READS:
            return result
        if call.name == "fsync":
            node = self.node(call.path)
            if isinstance(node, _File):
                node.durable = node.data
            else:
                node.durable, node.pending = dict(node.names), []
        elif call.name == "write":
            self.file(call.path).data += call.data[:result]
        elif call.name == "open to write":
            self.folder(call.path).change(**{call.path.name: _File()})
        elif call.name == "mkdir":
            self.folder(call.path).change(**{call.path.name: _Folder()})
        elif call.name in ("unlink", "rmdir", "remove"):
            self.folder(call.path).change(**{call.path.name: None})
        elif call.name in ("copy", "link"):
            assert call.other
            assert call.name == "link" or os.path.samefile(call.path, call.other), "obstore's copy is a hard link"
            self.folder(call.other).change(**{call.other.name: self.node(call.path)})
        elif call.name in ("rename", "replace"):
            assert call.other
            assert call.other.parent == call.path.parent
            node = self.node(call.path)
            self.folder(call.path).change(**{call.path.name: None, call.other.name: node})
        else:
            raise AssertionError(f"the model knows no {call.name}")
        self.cut()
        return result

    def node(self, path: Path) -> _File | _Folder:
        """What lies at a path, as programs see it."""
        node: _File | _Folder = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, _Folder)
            node = node.names[part]
        return node

    def file(self, path: Path) -> _File:
        """A file."""
        node = self.node(path)
        assert isinstance(node, _File)
        return node

    def folder(self, path: Path) -> _Folder:
        """The folder above a path."""
        node = self.node(path.parent)
        assert isinstance(node, _Folder)
        return node

    def survivors(self, kept: Callable[[], bool], content: Callable[[_File], bytes]) -> dict[str, bytes | None]:
        """Bytes by path after the cut; ``None`` for a folder."""
        out: dict[str, bytes | None] = {}

        def walk(folder: _Folder, at: str) -> None:
            for name, node in folder.after(kept).items():
                if isinstance(node, _Folder):
                    out[f"{at}{name}"] = None
                    walk(node, f"{at}{name}/")
                else:
                    out[f"{at}{name}"] = node.data if node.data == node.durable else content(node)

        walk(self.top, "")
        return out


def _written(root: Path, tree: dict[str, bytes | None]) -> None:
    root.mkdir()
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def _power_cuts(tmp_path: Path, random_cuts: int) -> tuple[int, int]:
    """Cut at every step of a day's work; the numbers of cuts and of different disks checked."""
    root, choice = tmp_path / "store", random.Random(11)
    root.mkdir()
    versions: list[str] = []
    aliases: dict[str, str] = {}
    doing: list[str] = []  # the verb under way, and what its alias may become
    seen: set[int] = set()
    cuts = 0

    def content(file: _File) -> bytes:
        kept = choice.randrange(len(file.durable), len(file.data) + 1)
        return choice.choice([file.durable, file.data[:kept], file.data[:kept] + b"\0" * (len(file.data) - kept)])

    def check(tree: dict[str, bytes | None]) -> None:
        nonlocal cuts
        cuts += 1
        key = hash((tuple(sorted(tree.items())), tuple(versions), tuple(aliases.items()), tuple(doing)))
        if key in seen:
            return
        seen.add(key)
        copy = tmp_path / "copy"
        _written(copy, tree)
        found = check_store(copy)
        assert found.versions[: len(versions)] == versions
        assert len(found.versions) <= len(versions) + (doing[:1] == ["publish"])
        for name in {*aliases, *found.aliases}:
            assert found.aliases.get(name) in (aliases.get(name), *doing[1:])
        if len(seen) % 10 == 0:
            version = Store(copy).publish(small_bundle(3))
            assert check_store(copy).versions == [*found.versions, version.id]
        shutil.rmtree(copy)

    def cut() -> None:
        for kept in (False, True):  # nothing that need not have reached the disk has; all names have
            for data in (lambda file: file.durable, lambda file: file.data[: len(file.data) // 2]):
                check(disk.survivors(lambda kept=kept: kept, data))  # type: ignore[misc]
        for _ in range(random_cuts):
            share = choice.random()
            check(disk.survivors(lambda share=share: choice.random() < share, content))  # type: ignore[misc]

    disk = ForgetfulDisk(root, cut)
    store = Store(root)
    with intercepted(root, disk.react):
        for number, verb in enumerate(("publish", "production", "publish", "production", "rollback", "publish")):
            if verb == "publish":
                doing[:] = [verb]
                versions.append(store.publish(small_bundle(number)).id)
            elif verb == "rollback":
                doing[:] = [verb, versions[0]]
                aliases["production"] = store.rollback().id
            else:
                doing[:] = [verb, versions[-1]]
                aliases["production"] = store.promote(versions[-1]).id
            doing.clear()
            cut()
    assert (len(versions), aliases) == (3, {"production": versions[0]})
    assert {path for path in disk.survivors(lambda: True, lambda file: file.data) if path.startswith("log/")} == {
        f"log/{number:012d}.json" for number in range(1, 7)
    }
    return cuts, len(seen)


@pytest.mark.parametrize("random_cuts", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_power_cut_at_any_step(random_cuts: int, tmp_path: Path) -> None:
    cuts, disks = _power_cuts(tmp_path, random_cuts)
    assert cuts > 100 * random_cuts
    assert disks > 100


def test_the_model_finds_a_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is judged: without any one kind of fsync the store does lose something."""
    from embstore.store import files, format, local, tensors

    for number, (module, name) in enumerate(
        [
            (tensors, "fsync_file"),
            (files, "fsync_file"),
            (files, "fsync_folder"),
            (format, "fsync_folder"),
            (local, "versions"),
            (local, "log"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        with monkeypatch.context() as patch:
            if name == "fsync_file":
                patch.setattr(module, name, lambda file: file.flush())
            elif name == "fsync_folder":
                patch.setattr(module, name, lambda path: None)
            else:  # of one folder only
                patch.setattr(module, "fsync_folder", lambda at, of=name: at.name == of or files.fsync_folder(at))
            with pytest.raises((AssertionError, StoreError, OSError, ValueError)):
                _power_cuts(tmp_path / str(number), 3)


# --- Bits that flip --------------------------------------------------------------------------------------------------


def _flips(store: Store, count: int, notice: Callable[[], None]) -> int:
    """Flip ``count`` random bits, each back again; the number of those that ``notice`` did not raise for."""
    choice, unseen = random.Random(13), 0
    paths = sorted(path for path in store.open().folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in paths]
    for turn in range(count):
        # Half by size, where most bytes are; half over the files, so that small ones have their share.
        path = choice.choices(paths, sizes)[0] if turn % 2 else choice.choice(paths)
        at, bit = choice.randrange(path.stat().st_size), 1 << choice.randrange(8)
        number = os.open(path, os.O_RDWR)
        (byte,) = os.pread(number, 1, at)
        os.pwrite(number, bytes([byte ^ bit]), at)
        try:
            notice()
        except StoreError as error:
            assert path.name in str(error) or store.root.name in str(error)  # noqa: PT017
        else:
            unseen += 1
        os.pwrite(number, bytes([byte]), at)
        os.close(number)
    notice()
    return unseen


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_verify_finds_any_flipped_bit(count: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(small_bundle(rows=3000))
    assert _flips(store, count, store.verify) == 0


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_opening_and_reading_finds_any_flipped_bit(count: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(small_bundle(rows=3000))

    def read() -> None:
        version = store.open()
        version.table.gather(torch.arange(version.table.num_rows))
        version.dense_state()
        version.table.exact_tokens()

    assert _flips(store, count, read) == 0

"""Small files that are replaced: by several writers at once, and by one that fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from embstore.store import files
from embstore.store.files import replace_small


def test_another_writer_of_the_same_file_between_any_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a consumer that was thought dead, and the one started in its place."""
    path, write, others = tmp_path / "position.json", files.write_small, []

    def interrupted(partial: Path, data: bytes) -> files.FileDigest:
        digest = write(partial, data)
        if data == b"first":
            others.append(True)
            replace_small(path, b"second, longer")
        return digest

    monkeypatch.setattr(files, "write_small", interrupted)
    replace_small(path, b"first")
    assert others
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    whole = {bytes([letter]) * 1000 * (letter - 64) for letter in range(65, 69)}
    wrong: list[object] = []

    def work(data: bytes) -> None:
        try:
            for _ in range(20):
                replace_small(path, data)
                if path.read_bytes() not in whole:
                    wrong.append("torn")
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(data,)) for data in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(tmp_path.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"position\.json"):
        replace_small(path, b"{}")
    assert list(tmp_path.iterdir()) == [path]

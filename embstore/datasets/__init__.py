"""Public data sets as Parquet logs: from the files their sites give to ``train/``, ``valid/``, ``test/`` and a schema.

Nothing is downloaded: most of these may be used but not passed on. ``docs/datasets.md`` says where each comes from,
under which licence, and whose split is followed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embstore.datasets import avazu, criteo, frappe, movielens
from embstore.datasets.conversion import Conversion, Raw, write
from embstore.errors import DatasetError, nearest

__all__ = ["Conversion", "convert", "names"]

_OPENERS: dict[str, Callable[[Path], Raw]] = {
    "avazu": avazu.open_raw,
    "criteo": criteo.open_raw,
    "frappe": frappe.open_raw,
    "movielens-100k": movielens.open_100k,
    "movielens-1m": movielens.open_1m,
    "movielens-latest": movielens.open_latest,
}


def names() -> tuple[str, ...]:
    """The data sets that can be converted."""
    return tuple(_OPENERS)


def convert(
    name: str, source: str | Path, target: str | Path, *, progress: Callable[[int], object] | None = None
) -> Conversion:
    """Turn raw files into Parquet logs.

    Args:
        name: one of ``names()``.
        source: the folder of the raw files (or the file, where there is one).
        target: the folder to make; it appears at once, when everything is written.
        progress: called with the number of rows written since its last call.

    Raises:
        DatasetError: an unknown name; files that are missing, broken or of something else (with file and line); a
            target that holds something already.
    """
    if name not in _OPENERS:
        raise DatasetError(f"no data set {name!r}", do=nearest(name, _OPENERS))
    source = Path(source).expanduser()
    if not source.exists():
        raise DatasetError(f"{name}: {source}", expected="the folder of the raw files", found="nothing there")
    return write(name, lambda: _OPENERS[name](source), Path(target).expanduser(), progress=progress)

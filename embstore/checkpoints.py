"""Checkpoints of a run: folders that are whole or absent.

    checkpoints/
      step-00000400/
        state.json           the trainer's numbers: step, cursor, schedule, best so far; sha256 of each file
        table.safetensors    rows, optimizer state; of a shared-out table each rank's: table-00000.safetensors
        dense.safetensors    normalizer and network
        adam.safetensors     the network's optimizer state

A checkpoint is written to a folder whose name starts with ``.``, made durable, then renamed; one that goes is renamed
so first. A kill at any time leaves the previous ones as they were. Tensors are written from where they lie, and read to
where they go: no second copy of the table is made. Ranks write at the same time, and rank 0 renames; what they wrote
can be loaded by any number of ranks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embstore.distributed import ALONE, Group
from embstore.errors import CheckpointError, CorruptVersionError
from embstore.store.files import fsync_folder, sha256_file
from embstore.store.tensors import open_tensors, write_tensors

_PREFIX = "step-"
_TABLE = "table"
_WHOLE = f"{_TABLE}.safetensors"  # of a process alone


class Part(NamedTuple):
    """What one file has of the rows that are wanted.

    Args:
        rows: which of them, from 0.
        tensors: as they lie in the file, mapped.
    """

    rows: range
    tensors: Mapping[str, Tensor]


class Loaded(NamedTuple):
    """A checkpoint, of whose files nothing but headers and digests was read yet.

    Args:
        state: plain values.
        tensors: ``{file stem: {name: tensor}}`` of all but the table, mapped.
        table: the rows that were wanted, in order.
    """

    state: dict[str, Any]
    tensors: dict[str, Mapping[str, Tensor]]
    table: list[Part]


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made when the first one is saved; all ranks see the same.
        group: who save and load together.
    """

    def __init__(self, folder: str | Path, group: Group = ALONE) -> None:
        self.folder, self.group = Path(folder), group

    def names(self) -> list[str]:
        """Names of the whole ones, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(_PREFIX))

    def name(self, step: int) -> str:
        """What the checkpoint of a step is called."""
        return f"{_PREFIX}{step:08d}"

    def digest(self, name: str) -> str:
        """sha256 of the numbers of one, those of its files' bytes among them."""
        return sha256_file(self.folder / name / "state.json").sha256

    def save(
        self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], shard: range
    ) -> str:
        """Write one and return its name; one of the same step is replaced.

        Args:
            step: training steps done.
            state: plain values, for ``state.json``.
            tensors: ``{file stem: {name: tensor}}``; those of ``"table"`` are of each rank's rows, the others rank 0's.
            shard: which rows of the table these are.
        """
        name, group = self.name(step), self.group
        partial, final = self.folder / f".{name}", self.folder / name

        def make() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

        def write() -> list[dict[str, Any]]:
            files, shards = {}, {}
            for stem, named in tensors.items():
                by_rank = stem == _TABLE and not group.alone
                path = partial / (f"{stem}-{group.rank:05d}.safetensors" if by_rank else f"{stem}.safetensors")
                if group.first or by_rank:
                    files[path.name] = write_tensors(path, named)._asdict()
                if stem == _TABLE:
                    shards[path.name] = [shard.start, shard.stop]
            return [files, shards]

        def commit() -> None:
            about = {**state, "step": step, "files": {}, "shards": {}}
            for of_files, of_shards in told:
                about["files"] |= of_files
                about["shards"] |= of_shards
            with open(partial / "state.json", "w") as out:
                json.dump(about, out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            fsync_folder(partial)
            gone = [_aside(final)] if final.exists() else []
            os.rename(partial, final)
            fsync_folder(self.folder)
            for path in gone:
                shutil.rmtree(path)

        group.lead(make)
        told = group.each(write)
        group.lead(commit)
        return name

    def load(self, name: str, rows: int, shard: range) -> Loaded:
        """Open one, after the digests of what is to be read were checked.

        Args:
            name: of it.
            rows: of the whole table.
            shard: those of them that are wanted.

        Raises:
            CheckpointError: absent, of a table with other rows, or its bytes are not those that were written.
        """
        return self.group.together(lambda: self._load(self.folder / name, rows, shard))

    @staticmethod
    def _load(folder: Path, rows: int, shard: range) -> Loaded:
        do = f"delete the folder {folder.name} to go on from another one, if there is, or start afresh"
        try:
            state = json.loads((folder / "state.json").read_text())
            shards = {file: range(*bounds) for file, bounds in (state.get("shards") or {}).items()}
            if not shards:  # as one process wrote it before there were ranks
                shards = {_WHOLE: range(len(open_tensors(folder / _WHOLE)["weight"]))}
            wanted = [file for file in state["files"] if _overlap(shards.get(file, shard), shard)]
            for file in wanted:
                promised = state["files"][file]
                found = sha256_file(folder / file).sha256
                if found != promised["sha256"]:
                    raise CheckpointError(
                        f"checkpoint {folder}: {file} is damaged",
                        expected=f"sha256 {promised['sha256'][:16]}…",
                        found=f"{found[:16]}…",
                        do=do,
                    )
            tensors: dict[str, Mapping[str, Tensor]] = {}
            parts = []
            for file in wanted:
                opened = open_tensors(folder / file)
                if file in shards:
                    parts.append(_part(shards[file], opened, shard))
                else:
                    tensors[file.removesuffix(".safetensors")] = opened
            parts.sort(key=lambda part: part.rows.start)
            total = max(of.stop for of in shards.values())
            if total != rows:
                raise CheckpointError(
                    f"checkpoint {folder} is of another table",
                    expected=f"{rows:,} rows",
                    found=f"{total:,}",
                    do="use the settings it was made with",
                )
            ends = [0, *(part.rows.stop for part in parts)]
            if ends != [*(part.rows.start for part in parts), len(shard)]:
                raise ValueError(f"not each of the rows {shard.start:,} to {shard.stop:,} once")
        except (CorruptVersionError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"checkpoint {folder} can't be read",
                expected="a whole checkpoint",
                found=str(error),
                do=do,
            ) from error
        return Loaded(state, tensors, parts)

    def prune(self, keep: set[str]) -> None:
        """Remove all but these, and what killed writers left; rank 0 does."""

        def remove() -> None:
            there = [path for path in self.folder.iterdir() if path.name.lstrip(".").startswith(_PREFIX)]
            gone = [path if path.name.startswith(".") else _aside(path) for path in there if path.name not in keep]
            fsync_folder(self.folder)
            for path in gone:
                shutil.rmtree(path)

        self.group.lead(remove)


def _aside(path: Path) -> Path:
    """Rename a checkpoint to what is none: half of it is never found under its name, however its removal ends."""
    gone = path.with_name(f".{path.name}.old")
    if gone.exists():
        shutil.rmtree(gone)
    return path.rename(gone)


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _part(rows: range, tensors: Mapping[str, Tensor], shard: range) -> Part:
    """What of a file's rows a shard has; torch's extra state is not of rows, and the same in each file."""
    both = _overlap(rows, shard)
    cut = slice(both.start - rows.start, both.stop - rows.start)
    own = {name: tensor if name.startswith("_") else tensor[cut] for name, tensor in tensors.items()}
    return Part(range(both.start - shard.start, both.stop - shard.start), own)


@torch.no_grad()
def load_rows(table: nn.Module, parts: list[Part], *, origin: str) -> None:
    """Copy a table's rows into its own tensors, part by part, as they lie in files.

    Raises:
        CheckpointError: they are not its rows' tensors.
    """
    own = table.state_dict()
    for part in parts:
        _check(
            {name: _shape(name, tensor, len(part.rows)) for name, tensor in own.items()},
            {name: tuple(tensor.shape) for name, tensor in part.tensors.items()},
            origin=origin,
        )
    for rows, tensors in parts:
        for name in tensors:
            if not name.startswith("_"):
                own[name][rows.start : rows.stop] = tensors[name]
    extra = {name: tensor for name, tensor in parts[0].tensors.items() if name.startswith("_")}
    table.load_state_dict(extra, strict=False)  # and what a module does once it is loaded


def _shape(name: str, tensor: Tensor, rows: int) -> tuple[int, ...]:
    return tuple(tensor.shape) if name.startswith("_") else (rows, *tensor.shape[1:])


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy tensors into a module's own, whose names and shapes must be the same.

    Raises:
        CheckpointError: they are not.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in of.items()} for of in (module.state_dict(), tensors)]
    _check(*shapes, origin=origin)
    module.load_state_dict(dict(tensors))


def _check(own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, origin: str) -> None:
    for name in sorted(own.keys() | found.keys()):
        ours, theirs = own.get(name, "absent"), found.get(name, "absent")
        if ours != theirs:
            raise CheckpointError(
                f"{origin} is of another model: {name}",
                expected=str(ours),
                found=str(theirs),
                do="use the settings it was made with",
            )


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, of in state.items() for name, value in of.items()}


def load_adam(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """What ``adam_tensors`` gave, back into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

"""Checkpoints of a run: folders that are whole or absent.

    checkpoints/
      step-00000400/
        state.json           the trainer's numbers: step, cursor, schedule, best so far; sha256 of each file
        table.safetensors    rows, optimizer state
        dense.safetensors    normalizer and network
        adam.safetensors     the network's optimizer state

A checkpoint is written to a folder whose name starts with ``.``, made durable, then renamed; a kill at any time leaves
the previous ones as they were. Tensors are written from where they lie: no second copy of the table is made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embstore.errors import CheckpointError, CorruptVersionError
from embstore.store.files import fsync_folder, sha256_file
from embstore.store.tensors import open_tensors, write_tensors

_PREFIX = "step-"


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made when the first one is saved.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Names of the whole ones, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(_PREFIX))

    def name(self, step: int) -> str:
        """What the checkpoint of a step is called."""
        return f"{_PREFIX}{step:08d}"

    def save(self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
        """Write one and return its name; one of the same step is replaced.

        Args:
            step: training steps done.
            state: plain values, for ``state.json``.
            tensors: ``{file stem: {name: tensor}}``.
        """
        name = self.name(step)
        partial, final = self.folder / f".{name}", self.folder / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {}
        for stem, group in tensors.items():
            path = partial / f"{stem}.safetensors"
            files[path.name] = write_tensors(path, group)._asdict()
        with open(partial / "state.json", "w") as out:
            json.dump({**state, "step": step, "files": files}, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        fsync_folder(partial)
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        fsync_folder(self.folder)
        return name

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]]]:
        """The state and the (memory-mapped) tensors of one, after its digests were checked.

        Raises:
            CheckpointError: absent, or its bytes are not those that were written.
        """
        folder = self.folder / name
        try:
            state = json.loads((folder / "state.json").read_text())
            for file, promised in state["files"].items():
                found = sha256_file(folder / file).sha256
                if found != promised["sha256"]:
                    raise CheckpointError(
                        f"checkpoint {folder}: {file} is damaged",
                        expected=f"sha256 {promised['sha256'][:16]}…",
                        found=f"{found[:16]}…",
                        do=f"delete the folder {name} to go on from another one, if there is, or start afresh",
                    )
            groups: dict[str, Mapping[str, Tensor]] = {}
            for file in state["files"]:
                groups[file.removesuffix(".safetensors")] = open_tensors(folder / file)
        except (CorruptVersionError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint {folder} can't be read",
                expected="a whole checkpoint",
                found=str(error),
                do=f"delete the folder {name} to go on from another one, if there is, or start afresh",
            ) from error
        return state, groups

    def prune(self, keep: set[str]) -> None:
        """Remove all but these, and what killed writers left."""
        for path in self.folder.iterdir():
            if path.name.lstrip(".").startswith(_PREFIX) and path.name not in keep:
                shutil.rmtree(path)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy tensors into a module's own, whose names and shapes must be the same.

    Raises:
        CheckpointError: they are not.
    """
    own = module.state_dict()
    for name in own.keys() | tensors.keys():
        ours = tuple(own[name].shape) if name in own else "absent"
        theirs = tuple(tensors[name].shape) if name in tensors else "absent"
        if ours != theirs:
            raise CheckpointError(
                f"{origin} is of another model: {name}",
                expected=str(ours),
                found=str(theirs),
                do="use the settings it was made with",
            )
    module.load_state_dict(dict(tensors))


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

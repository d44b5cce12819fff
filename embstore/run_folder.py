"""A run's folder: whose it is, and what came of the run.

    runs/frappe/
      config.yaml        the settings, complete
      schema.yaml        what the log's columns mean
      logs.json          fingerprints of the logs it learns from, and the type of each feature's values
      space.json         what its versions have in common: their vectors can be compared
      exact.safetensors  known tokens of the exact features
      warm_start.json    what its rows started from, see ``embstore.warm_start``
      lineage.json       what came before it, of the stages of a loop
      vocabulary/        values of the training log, where they are published, see ``embstore.vocabulary``
      honoured/          the vocabulary whose dropped values it prunes, see ``embstore.run_vocabulary``
      metrics.jsonl  checkpoints/  tensorboard/     see ``embstore.training``
      published.json     the version published last, see ``embstore.continuous``
      result.json        the metrics of the finished run

A file appears under its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from embstore.checkpoints import Checkpoints
from embstore.continuous import PUBLISHED
from embstore.errors import CheckpointError, ConfigError
from embstore.schema import Schema
from embstore.settings import RunConfig
from embstore.store import new_space
from embstore.store.files import replace_small
from embstore.store.tensors import open_tensors, write_tensors
from embstore.vocabulary import Vocabulary

_CONFIG, _SCHEMA, _LOGS, _EXACT, _RESULT = "config.yaml", "schema.yaml", "logs.json", "exact.safetensors", "result.json"
_SPACE, _WARM_START, _LINEAGE = "space.json", "warm_start.json", "lineage.json"
_FILES = (_CONFIG, _SCHEMA, _LOGS, _SPACE, _EXACT, _WARM_START, _LINEAGE, _RESULT, "metrics.jsonl", PUBLISHED)
_REMEDY = {  # when it is damaged
    _LOGS: "start afresh with --fresh",
    _SPACE: "delete it: a run that published on its way goes on in its last version's space, any other in a new one, "
    "whose vectors count as not comparable with those before",
    _WARM_START: "delete it: versions will not say what their rows started from",
    _LINEAGE: "delete it: versions will not say which stages came before the run",
    _RESULT: "delete it, and train again: a finished run is only evaluated again",
}
_VOCABULARY, _HONOURED = "vocabulary", "honoured"
_FOLDERS = ("checkpoints", "tensorboard", _VOCABULARY, _HONOURED)


class RunFolder:
    """The folder of one run.

    Args:
        path: made by ``claim``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def config(self) -> RunConfig | None:
        """The settings of the run it belongs to, if it belongs to one.

        Raises:
            ConfigError: they can't be read.
        """
        path = self.path / _CONFIG
        return replace(RunConfig.from_yaml(path), output=str(self.path)) if path.exists() else None

    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(Checkpoints(self.path / "checkpoints").names())

    def claim(
        self, config: RunConfig, schema: Schema, fingerprints: Mapping[str, str], columns: Mapping[str, str]
    ) -> None:
        """Make it this run's; files of a run that never came to a checkpoint are replaced.

        Args:
            config: with the schema written out.
            schema: the same, with the reasons for what was inferred.
            fingerprints: of the logs it learns from, by name.
            columns: by feature, the type of its values.

        Raises:
            CheckpointError: it holds checkpoints of other settings or logs.
            ConfigError: it can't be made or written to.
        """
        there = self.config()
        if there is not None:
            changed, before = config.changed_from(there), self._read(_LOGS).get("fingerprints", {})
            names = before.keys() | fingerprints.keys()
            changed += [f"logs.{name}" for name in names if before.get(name) != fingerprints.get(name)]
            if changed and Checkpoints(self.path / "checkpoints").names():
                raise CheckpointError(
                    f"{self.path} holds a run of other settings or logs",
                    expected=f"those in {self.path / _CONFIG}",
                    found=f"another {', '.join(sorted(changed))}",
                    do="name another folder with --output, or start afresh with --fresh",
                )
            if changed:
                self.clear()
        make_output(self.path)
        settings = asdict(config)
        del settings["label"]
        self._write(_CONFIG, yaml.safe_dump(settings, sort_keys=False))
        self._write(_SCHEMA, schema.to_yaml())
        self._write(_LOGS, json.dumps({"fingerprints": dict(fingerprints), "columns": dict(columns)}))
        if config.start is None and not (self.path / PUBLISHED).exists():  # its version has decided, then
            self.space()

    def clear(self) -> None:
        """Remove what a run left there (only files a run makes)."""
        if not self.path.is_dir():
            return
        if (self.path / "checkpoints").is_dir():
            Checkpoints(self.path / "checkpoints").prune(set())
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def lineage(self) -> dict[str, Any]:
        """The logs and the settings, as a version's manifest has them."""
        path, parsed = self.path / _CONFIG, self.config()
        config = yaml.safe_load(path.read_text()) if path.exists() else {}
        lineage = {"logs": self.result().get("logs", {}), "config": config}
        started = self._read(_WARM_START)
        if parsed is not None and parsed.honoured is not None:
            lineage["vocabulary"] = parsed.honoured.lineage
        if started:
            lineage["node2vec"] = started
        for name, made in self._read(_LINEAGE).items():
            lineage[name] = {**lineage.get(name, {}), **made}
        return lineage

    def write_lineage(self, made: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what came before the run, for the lineage of what is published: by entry of it, what is added."""
        make_output(self.path)
        self._write(_LINEAGE, json.dumps(dict(made)))

    def write_warm_start(self, done: Sequence[Mapping[str, Any]]) -> None:
        """Keep what rows started from, for the lineage of what is published."""
        self._write(_WARM_START, json.dumps({"warm_start": list(done)}))

    def columns(self) -> dict[str, str]:
        """By feature, the type of its values."""
        found: dict[str, str] = self._read(_LOGS).get("columns", {})
        return found

    def space(self, published: Callable[[], str | None] = lambda: None) -> str:
        """The space of the versions that are published of it, however often; decided when it is first asked for.

        Args:
            published: gives that of the version published last, if there is one; asked when none was decided.

        Raises:
            CheckpointError: its file is damaged, or there is none and it can't be written.
        """
        if not (self.path / _SPACE).exists():
            space = published() or new_space()
            try:
                self._write(_SPACE, json.dumps({"space": space}))
            except OSError as error:
                expected = "a folder where it can be kept: all that is published of a run is of one space"
                do = "publish from a copy of the run's folder"
                raise CheckpointError(f"{self.path / _SPACE}", expected=expected, found=str(error), do=do) from error
        kept = self._read(_SPACE).get("space")
        if not isinstance(kept, str):
            do = _REMEDY[_SPACE]
            raise CheckpointError(f"{self.path / _SPACE}", expected="the id of a space", found=repr(kept), do=do)
        return kept

    def result(self) -> dict[str, Any]:
        """What ``Run.train`` returned; empty before it is finished."""
        return self._read(_RESULT)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Keep what ``Run.train`` returns."""
        self._write(_RESULT, json.dumps(result, indent=1))

    def exact_tokens(self) -> dict[str, Tensor] | None:
        """Known tokens by exact feature, if they were collected."""
        path = self.path / _EXACT
        return dict(open_tensors(path)) if path.exists() else None

    def write_exact_tokens(self, tokens: Mapping[str, Tensor]) -> None:
        """Keep them, so that a resumed run doesn't read the log for them again."""
        partial = self.path / f".{_EXACT}"
        partial.unlink(missing_ok=True)  # of a process that was killed
        write_tensors(partial, tokens)
        os.replace(partial, self.path / _EXACT)

    def vocabulary(self) -> Vocabulary | None:
        """The values of the training log, if they were counted."""
        path = self.path / _VOCABULARY
        return Vocabulary.from_parquet(path) if path.is_dir() else None

    def write_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Keep it, so that nobody counts again: neither a resumed run nor who publishes it later."""
        self._write_values(_VOCABULARY, vocabulary)

    def honoured(self) -> Vocabulary | None:
        """The vocabulary whose dropped values the run prunes, if it was written."""
        path = self.path / _HONOURED
        return Vocabulary.from_parquet(path) if path.is_dir() else None

    def write_honoured(self, vocabulary: Vocabulary) -> None:
        """Keep it: wherever it came from may change."""
        self._write_values(_HONOURED, vocabulary)

    def _write_values(self, name: str, vocabulary: Vocabulary) -> None:
        path = self.path / name
        for left in (path, *self.path.glob(".tmp-*")):  # of other features, or of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        vocabulary.to_parquet(path)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found = json.loads(path.read_bytes()) if path.exists() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}", expected="a mapping as JSON", found="none", do=_REMEDY.get(name, ""))
        return found

    def _write(self, name: str, text: str) -> None:
        replace_small(self.path / name, text.encode())


def make_output(folder: Path) -> None:
    """Make the folder that was named for results, and those above it; fine when it exists.

    Raises:
        ConfigError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        found = "a file" if folder.is_file() else str(error.strerror)
        raise ConfigError(
            f"output {folder}", expected="a folder that can be made and written to", found=found, do="name another"
        ) from error

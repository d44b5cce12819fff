"""A node2vec job's folder: what each stage came to, from where the same job goes on.

    runs/node2vec/
      manifest.json      the settings that decide, fingerprints of what was read, and of each stage that is done what it
                         came to, with length and sha256 of its files
      graph.npz          as ``embstore.node2vec.graph_files.to_npz`` writes it
      visits.npy         how often walks come to each node
      checkpoints/       where training stands; gone when it is done
      vectors/feature=item/part-0.parquet      value, node, vector, visits
      contexts.npy       the nodes' vectors as centres, for who goes on from here
      walks/             number, walk (numbers of nodes), where they are kept
      metrics.jsonl      the loss on the way, and loss.png
      result.json        of the finished job

A file appears under its name when it is whole, and counts when the manifest has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import CheckpointError, CorruptVersionError, EmbstoreError
from embstore.node2vec.graph import Graph
from embstore.node2vec.graph_files import read_npz, to_npz
from embstore.node2vec.settings import differing
from embstore.run_folder import make_output
from embstore.store.export import escaped
from embstore.store.files import fsync_file, fsync_folder, replace_small, sha256_file

FORMAT = 1
STAGES = ("graph", "visits", "train", "evaluate", "publish")
_MANIFEST, _RESULT, _METRICS = "manifest.json", "result.json", "metrics.jsonl"
_CONTEXTS, _GRAPH = "contexts.npy", "graph.npz"
_FILES = (_RESULT, _METRICS, _CONTEXTS, _GRAPH, "visits.npy", "loss.png", _MANIFEST)
_FOLDERS = ("checkpoints", "vectors", "walks", "tensorboard")
_ROWS = 65_536  # vectors of a row group


class Position(NamedTuple):
    """Where training stands.

    Args:
        walks: done, of all epochs.
        log_bytes: of the metrics until here.
        losses: of the pieces since the last line of the metrics.
    """

    walks: int = 0
    log_bytes: int = 0
    losses: tuple[float, ...] = ()


class Vectors(NamedTuple):
    """Of a feature.

    Args:
        values: its nodes', as Arrow.
        vectors, contexts: float32 ``[V, dim]``.
    """

    values: pa.Array
    vectors: NDArray[np.float32]
    contexts: NDArray[np.float32]


class JobFolder:
    """The folder of one job.

    Args:
        path: made by ``claim``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def claim(self, settings: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Make it this job's.

        Args:
            settings: those that decide the result.
            sources: fingerprints of what is read, by the setting that names it.

        Raises:
            CheckpointError: it holds what other settings or logs came to.
            ConfigError: it can't be made or written to.
        """
        settings = json.loads(json.dumps(settings))
        there = self.manifest()
        if there:
            changed = [name for name in differing(settings, there["settings"]) if name not in sources]
            changed += differing(sources, there["sources"])  # wherever they lie
            if changed and there["stages"]:
                raise CheckpointError(
                    f"{self.path} holds a job of other settings or logs",
                    expected=f"those in {self.path / _MANIFEST}",
                    found=f"another {', '.join(sorted(changed))}",
                    do="name another folder with --output, or start afresh with --fresh",
                )
            if not changed:
                self._sweep()
                return
            self.clear()
        elif found := [name for name in (*_FILES, *_FOLDERS) if (self.path / name).exists()]:
            expected, do = "a job's folder, or a new one", "name another folder with --output"
            raise CheckpointError(str(self.path), expected=expected, found=f"{found[0]} of something else", do=do)
        make_output(self.path)
        self._write(_MANIFEST, {"format": FORMAT, "settings": settings, "sources": dict(sources), "stages": {}})

    def clear(self) -> None:
        """Remove what a job left there (only files a job makes); its manifest last, without which it isn't a job's."""
        if not (self.path / _MANIFEST).exists():
            return
        self._sweep()
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def manifest(self) -> dict[str, Any]:
        """What the manifest says; empty when there is none."""
        path = self.path / _MANIFEST
        if not path.exists():
            return {}
        found = self._read(_MANIFEST)
        if found.get("format") != FORMAT or not {"settings", "sources", "stages"} <= found.keys():
            do = "start afresh with --fresh"
            raise CheckpointError(
                str(path), expected=f"a job's manifest of format {FORMAT}", found=str(found.get("format")), do=do
            )
        return found

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a stage came to, its files checked; ``None`` before it is done.

        Raises:
            CheckpointError: files that are not as they were written.
        """
        about: dict[str, Any] | None = self.manifest().get("stages", {}).get(stage)
        for name, written in (about or {}).get("files", {}).items():
            try:
                found: Any = sha256_file(self.path / name)._asdict()
            except CorruptVersionError as error:
                found = {"bytes": error.found}
            if found != written:
                raise CheckpointError(
                    f"{self.path / name}",
                    expected=f"{written['bytes']:,} bytes with sha256 {written['sha256']}",
                    found=f"{found['bytes']}, {found.get('sha256', '')}".rstrip(", "),
                    do="restore it, or start afresh with --fresh",
                )
        return about

    def finish(self, stage: str, files: Iterable[str] = (), **about: Any) -> dict[str, Any]:
        """A stage is done, with these files."""
        manifest = self.manifest()
        digests = {name: sha256_file(self.path / name)._asdict() for name in files}
        manifest["stages"][stage] = {**about, "files": digests}
        self._write(_MANIFEST, manifest)
        done: dict[str, Any] = manifest["stages"][stage]
        return done

    def write_graph(self, graph: Graph) -> str:
        """Keep the graph; the name of its file."""
        to_npz(graph, self.path / _GRAPH)
        fsync_folder(self.path)
        return _GRAPH

    def read_graph(self) -> Graph:
        """The graph that was kept."""
        return read_npz(self.path / _GRAPH, directed=self.manifest()["stages"]["graph"]["directed"])

    def write_visits(self, visits_N: NDArray[np.int64]) -> str:
        """Keep the visits; the name of their file."""
        self._replace("visits.npy", lambda file: np.save(file, visits_N))
        return "visits.npy"

    def read_visits(self) -> NDArray[np.int64]:
        """The visits that were kept."""
        visits_N: NDArray[np.int64] = np.load(self.path / "visits.npy", allow_pickle=False)
        return visits_N

    def save(self, at: Position, vectors: NDArray[np.float32], contexts: NDArray[np.float32]) -> None:
        """Keep where training stands, and nothing of before."""
        folder = self.path / "checkpoints"
        final, partial = folder / f"walk-{at.walks:012d}", folder / ".partial"
        if final.exists():
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, array in (("vectors.npy", vectors), (_CONTEXTS, contexts)):
            with (partial / name).open("xb") as file:
                np.save(file, array)
                fsync_file(file)
        files = {name: sha256_file(partial / name)._asdict() for name in ("vectors.npy", _CONTEXTS)}
        replace_small(partial / "state.json", json.dumps({**at._asdict(), "files": files}).encode())
        os.rename(partial, final)
        fsync_folder(folder)
        for before in folder.glob("walk-*"):
            if before != final:
                shutil.rmtree(before)

    def saved(self) -> tuple[Position, NDArray[np.float32], NDArray[np.float32]] | None:
        """What was kept last, its bytes checked; what the metrics say of later is cut off.

        Raises:
            CheckpointError: files that are not as they were written.
        """
        last = max((self.path / "checkpoints").glob("walk-*"), default=None)
        at = Position()
        arrays: list[NDArray[np.float32]] = []
        if last is not None:
            try:
                state = json.loads((last / "state.json").read_bytes())
                at = Position(state["walks"], state["log_bytes"], tuple(state["losses"]))
                for name, written in state["files"].items():
                    if sha256_file(last / name)._asdict() != written:
                        raise ValueError(f"other bytes in {name}")
                    arrays.append(np.load(last / name, allow_pickle=False))
            except (OSError, ValueError, KeyError, EmbstoreError) as error:
                do = f"delete {last} to train again from the beginning"
                raise CheckpointError(str(last), expected="a whole checkpoint", found=str(error), do=do) from error
        with suppress(FileNotFoundError):
            os.truncate(self.path / _METRICS, at.log_bytes)
        return (at, arrays[0], arrays[1]) if arrays else None

    def forget_checkpoints(self) -> None:
        """Training is done."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def write_metrics(self, record: Mapping[str, Any]) -> int:
        """Add a line; the bytes there are then."""
        with open(self.path / _METRICS, "ab") as out:
            out.write(json.dumps(record).encode() + b"\n")
            fsync_file(out)  # a checkpoint that counts on it may outlive a loss of power
            return out.tell()

    def metrics(self) -> list[dict[str, Any]]:
        """All lines."""
        path = self.path / _METRICS
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def write_vectors(
        self,
        graph: Graph,
        vectors_ND: NDArray[np.float32],
        contexts_ND: NDArray[np.float32],
        visits_N: NDArray[np.int64],
    ) -> list[str]:
        """A Parquet file for each feature, and the contexts; their names."""
        final, partial = self.path / "vectors", self.path / ".vectors"
        for folder in (final, partial):  # of a process that was killed
            shutil.rmtree(folder, ignore_errors=True)
        names = []
        for feature, numbers in graph.parts().items():
            values = pa.array(np.arange(graph.num_nodes)) if graph.nodes is None else graph.nodes[feature]
            name = f"feature={escaped(feature)}/part-0.parquet"
            (partial / name).parent.mkdir(parents=True)
            _write_feature(partial / name, feature, values, numbers, vectors_ND, visits_N)
            names.append(f"vectors/{name}")
        fsync_folder(partial)
        os.rename(partial, final)
        self._replace(_CONTEXTS, lambda file: np.save(file, contexts_ND))
        return [*names, _CONTEXTS]

    def vectors_digest(self) -> str:
        """Of the vectors of a job that has trained.

        Raises:
            CheckpointError: it hasn't.
        """
        trained = self.manifest().get("stages", {}).get("train")
        if trained is None:
            expected, found = "the folder of a node2vec job that has trained", "none"
            raise CheckpointError(f"vectors of {self.path}", expected=expected, found=found)
        return hashlib.sha256(json.dumps(trained["files"], sort_keys=True).encode()).hexdigest()

    def read_vectors(self) -> dict[str, Vectors]:
        """What training came to, by feature.

        Raises:
            CheckpointError: nothing, or files that are not as they were written.
        """
        if self.done("train") is None:
            self.vectors_digest()
        contexts_ND = np.load(self.path / _CONTEXTS, allow_pickle=False)
        found = {}
        for path in sorted((self.path / "vectors").glob("feature=*/part-0.parquet")):
            table = pq.read_table(path, partitioning=None)
            value, node_V = table["value"].combine_chunks(), table["node"].to_numpy()
            numbers = table["vector"].combine_chunks().flatten().to_numpy()
            feature = (table.schema.metadata or {})[b"embstore.feature"].decode()
            found[feature] = Vectors(value, numbers.reshape(len(value), contexts_ND.shape[1]), contexts_ND[node_V])
        return found

    def result(self) -> dict[str, Any]:
        """Of the finished job; empty before."""
        return self._read(_RESULT) if (self.path / _RESULT).exists() else {}

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Keep it."""
        self._write(_RESULT, result)

    def _sweep(self) -> None:
        """Remove what a process that was killed left half written."""
        for name in (*_FILES, "vectors"):
            for path in self.path.glob(f".{name}*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for path in self.path.glob("walks/.*.parquet"):
            path.unlink()

    def _replace(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        partial = self.path / f".{name}"
        with partial.open("wb") as file:
            write(file)
            fsync_file(file)
        os.replace(partial, self.path / name)
        fsync_folder(self.path)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_bytes())
        except ValueError:
            found = None
        if not isinstance(found, dict):
            do = "start afresh with --fresh"
            raise CheckpointError(str(self.path / name), expected="a mapping as JSON", found="none", do=do)
        return found

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        replace_small(self.path / name, json.dumps(values, indent=1).encode())


def _write_feature(
    path: Path,
    feature: str,
    values: pa.Array,
    numbers: range,
    vectors_ND: NDArray[np.float32],
    visits_N: NDArray[np.int64],
) -> None:
    dim = vectors_ND.shape[1]
    fields = [("value", values.type), ("node", pa.int32()), ("vector", pa.list_(pa.float32(), dim))]
    schema = pa.schema([*fields, ("visits", pa.int64())])
    schema = schema.with_metadata({"embstore.feature": feature, "embstore.dim": str(dim)})
    with path.open("xb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            for first in range(numbers.start, numbers.stop, _ROWS):
                rows = slice(first, min(first + _ROWS, numbers.stop))
                vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND[rows].reshape(-1)), dim)
                columns = [
                    values.slice(first - numbers.start, rows.stop - first),
                    pa.array(np.arange(first, rows.stop, dtype=np.int32)),
                    *(vector, pa.array(visits_N[rows])),
                ]
                writer.write_table(pa.table(columns, schema=schema))
        fsync_file(file)

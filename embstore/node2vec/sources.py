"""Fingerprints of what a job reads: its stages are those of the same log, graph and former vectors."""

from __future__ import annotations

from pathlib import Path

from embstore.errors import CorruptVersionError, LogError
from embstore.logs import ParquetLog
from embstore.node2vec.folder import JobFolder
from embstore.node2vec.graph_files import is_parquet
from embstore.node2vec.graph_settings import GraphSettings
from embstore.node2vec.settings import JobSettings
from embstore.schema import Feature, Schema
from embstore.store.files import sha256_file


def fingerprints(config: JobSettings) -> dict[str, str]:
    """By the setting that names it: of Parquet as ``ParquetLog.fingerprint``, of another file its sha256.

    Raises:
        LogError, SchemaError: a log or file that can't be read.
        CheckpointError: former vectors that there aren't.
    """
    found = _of_graph(config.graph)
    if config.start.vectors is not None:
        found["start.vectors"] = JobFolder(config.start.vectors).vectors_digest()
    return found


def _of_graph(settings: GraphSettings) -> dict[str, str]:
    if settings.log is not None:
        schema = Schema(features=tuple(Feature(name=name) for name in settings.features))
        source = settings.log if isinstance(settings.log, str) else list(settings.log)
        return {"graph.log": ParquetLog(source, schema, labelled=False).fingerprint}
    name = "edges" if settings.edges is not None else "graph"
    path = getattr(settings, name)
    if name == "edges" and is_parquet(path):
        schema = Schema(features=(Feature(name="source"), Feature(name="target")))
        return {"graph.edges": ParquetLog(path, schema, labelled=False).fingerprint}
    try:
        return {f"graph.{name}": sha256_file(Path(path)).sha256}
    except CorruptVersionError as error:
        raise LogError(f"{name} {path}", expected="a file that can be read", found=error.found) from error

"""Immutable versions of a trained bundle {table, schema, dense model}: published, promoted, kept, compared."""

from importlib import import_module
from typing import Any

from embstore.store.bundle import Bundle, Change, OptimizerState, Progress, TableSource, without_network
from embstore.store.consumer import Consumer, Update
from embstore.store.diff import Difference, RowChanges
from embstore.store.files import FileDigest, sha256_file
from embstore.store.format import schema_sha256
from embstore.store.gc import Collected
from embstore.store.lease import Lease
from embstore.store.publish import new_space
from embstore.store.registry import Store, VersionInfo
from embstore.store.table import VersionTable
from embstore.store.tensors import SafetensorsWriter, open_tensors, write_tensors
from embstore.store.verification import Finding
from embstore.store.version import Version

# Only those who export pay for Arrow and what reads logs.
_EXPORT = {
    "ValueVectors": "embstore.store.warm_start",
    "WarmStart": "embstore.store.warm_start",
    "export_parquet": "embstore.store.export",
    "export_safetensors": "embstore.store.export",
    "import_vectors": "embstore.store.warm_start",
    "open_values": "embstore.store.values",
    "set_rows": "embstore.store.warm_start",
    "vocabulary_of": "embstore.counting",
}

__all__ = [
    *_EXPORT,
    "Bundle",
    "Change",
    "Collected",
    "Consumer",
    "Difference",
    "FileDigest",
    "Finding",
    "Lease",
    "OptimizerState",
    "Progress",
    "RowChanges",
    "SafetensorsWriter",
    "Store",
    "TableSource",
    "Update",
    "Version",
    "VersionInfo",
    "VersionTable",
    "new_space",
    "open_tensors",
    "schema_sha256",
    "sha256_file",
    "without_network",
    "write_tensors",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORT:
        raise AttributeError(f"module 'embstore.store' has no attribute {name!r}")
    return getattr(import_module(_EXPORT[name]), name)

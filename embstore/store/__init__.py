"""Immutable versions of a trained bundle {table, schema, dense model}: publish, promote, roll back, open, verify."""

from embstore.store.bundle import Bundle, Change, OptimizerState, Progress, TableSource
from embstore.store.consumer import Consumer, Update
from embstore.store.files import FileDigest, fsync_folder, make_folder, sha256_file
from embstore.store.format import schema_sha256
from embstore.store.registry import Store, VersionInfo, new_space
from embstore.store.table import VersionTable
from embstore.store.tensors import SafetensorsWriter, open_tensors, write_tensors
from embstore.store.version import Version

__all__ = [
    "Bundle",
    "Change",
    "Consumer",
    "FileDigest",
    "OptimizerState",
    "Progress",
    "SafetensorsWriter",
    "Store",
    "TableSource",
    "Update",
    "Version",
    "VersionInfo",
    "VersionTable",
    "fsync_folder",
    "make_folder",
    "new_space",
    "open_tensors",
    "schema_sha256",
    "sha256_file",
    "write_tensors",
]

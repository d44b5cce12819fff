"""Immutable versions of a trained bundle {table, schema, dense model}: published, promoted, kept, compared."""

from embstore.store.diff import Difference, RowChanges
from embstore.store.files import FileDigest, fsync_folder, make_folder, sha256_file
from embstore.store.format import Bundle, Progress, TableSource, schema_sha256
from embstore.store.gc import Collected
from embstore.store.lease import Lease
from embstore.store.registry import Store, VersionInfo, new_space
from embstore.store.tensors import SafetensorsWriter, open_tensors, write_tensors
from embstore.store.version import Version, VersionTable

__all__ = [
    "Bundle",
    "Collected",
    "Difference",
    "FileDigest",
    "Lease",
    "Progress",
    "RowChanges",
    "SafetensorsWriter",
    "Store",
    "TableSource",
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

"""A version, opened: its table mapped, its schema parsed, everything it says of itself checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embstore.errors import ConfigError, CorruptVersionError, StoreError
from embstore.schema import Schema
from embstore.store import format
from embstore.store.bundle import Bundle, OptimizerState, Progress
from embstore.store.delta import read_delta_rows
from embstore.store.documents import read_json, shown
from embstore.store.files import FileDigest, read_small
from embstore.store.manifest import (
    COMPAT,
    DELTA,
    DENSE,
    DENSE_OPTIMIZER,
    MANIFEST,
    MAX_SMALL_BYTES,
    SCHEMA,
    TOKENS,
    DeltaInfo,
    Layout,
    OptimizerInfo,
    ValuesInfo,
    check_body,
    check_buckets,
    check_compat,
    check_format,
    check_reader,
    is_bucket,
    read_delta,
    read_files,
    read_optimizer,
    read_vocabulary,
)
from embstore.store.optimizer import OptimizerBuckets, OptimizerRows
from embstore.store.overlays import Overlay, Overlays
from embstore.store.place import Files, Stamp, read_manifest
from embstore.store.table import Buckets, VersionTable
from embstore.store.tensors import open_tensors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embstore.feature_values import TokenStatus
    from embstore.kernels.plan import LookupPlan
    from embstore.token_filter import TokenFilter
    from embstore.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, kw_only=True)
class Version:
    """An immutable bundle {table, vocabulary, schema, dense model}; open one with ``Store.open``.

    It stays usable while it is held, whatever happens to its files' names (a gc, a rename).

    Args:
        id: e.g. ``"20261124T034420Z-1f0c2a9b"``.
        digest: sha256 of its manifest, which holds the sha256 of all else.
        manifest: ``docs/store-format.md`` has its keys.
        schema: of the logs it was trained on.
        table: its rows.
        source: its files.
        files: length and sha256 of each file but the manifest.
        dense: the dense model's tensors, mapped; ``dense_state`` copies them.
        delta: what it is a change of, and by how much; ``None`` for a whole version.
        optimizer: what of the optimizers' state it holds; ``optimizer_state`` reads it.
        own_vocabulary: what its manifest says of a vocabulary of its own; ``None`` where it has none, or its base's.
        base: of a delta, opened.
        changed: a delta's own rows, and those of its optimizer's tensors by name.
        checked: of files this process has found to be what was published, when they were written.
    """

    id: str
    digest: str
    manifest: dict[str, Any]
    schema: Schema
    table: VersionTable
    source: Files
    files: dict[str, FileDigest]
    dense: dict[str, Tensor]
    delta: DeltaInfo | None = None
    optimizer: OptimizerInfo | None = None
    own_vocabulary: dict[str, ValuesInfo] | None = None
    base: Version | None = None
    changed: tuple[Overlay, dict[str, Tensor]] | None = None
    checked: dict[str, Stamp] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        source: Files,
        *,
        version: str,
        digest: str,
        open_base: Callable[[DeltaInfo], Version] | None = None,
        depth: int | None = None,
    ) -> Version:
        """Open the version of these files, checking all but the table's rows, which are when they are read.

        Args:
            source: its files.
            version: what its manifest must say it is.
            digest: sha256 of its manifest.
            open_base: opens what a delta is a change of.
            depth: how many deltas lead to it from a whole version, where that is known.

        Raises:
            CorruptVersionError: naming the file, what was expected and what was found.
            StoreError: a later embstore wrote it.
        """
        where = source.where(MANIFEST)
        stamps = source.stamps() if source.at_hand else {}  # elsewhere what is read is the cache's copy
        manifest, files = read_body(source, version=version, digest=digest)
        compat = read_json(_read_whole(source, COMPAT, files), source.where(COMPAT))
        check_reader(compat, source.where(COMPAT))
        schema = _parse_schema(_read_whole(source, SCHEMA, files), source.where(SCHEMA))
        layout = check_body(manifest, schema, where)
        delta, optimizer = read_delta(manifest, where), read_optimizer(manifest, where)
        own_vocabulary = read_vocabulary(manifest, files, where)
        if depth is not None and depth != (delta.depth if delta is not None else 0):  # before its base is opened
            raise CorruptVersionError(f"{where}: depth", expected=str(depth), found=shown(manifest["delta"]))
        _check_names(files, layout, delta, optimizer, where)
        check_compat(compat, format.compat(schema, layout, manifest["format"]), source.where(COMPAT))
        tokens, dense = _tensors(source, TOKENS, files), _tensors(source, DENSE, files)
        format.check_tokens(tokens, manifest["features"], source.where(TOKENS))
        format.check_dense(dense, source.where(DENSE))
        base = changed = None
        if delta is None:
            table = VersionTable(layout, manifest["features"], tokens, Buckets(source, layout, files), Overlays())
        else:
            base = _opened(delta, open_base, where)
            _check_base(base, layout, manifest, tokens, where)
            if optimizer is not None and (base.optimizer is None or base.optimizer.tensors != optimizer.tensors):
                expected = f"tensors as its base {base.id} has"
                raise CorruptVersionError(f"{where}: optimizer", expected=expected, found=f"{optimizer.tensors}")
            path = source.fetch(DELTA, files[DELTA])
            changed = read_delta_rows(path, files[DELTA].sha256, delta, layout, optimizer)
            under = base.table
            table = VersionTable(layout, manifest["features"], tokens, under.buckets, under.overlays.over(changed[0]))
        return cls(
            id=version,
            digest=digest,
            manifest=manifest,
            schema=schema,
            table=table,
            source=source,
            files=files,
            dense=dense,
            delta=delta,
            optimizer=optimizer,
            own_vocabulary=own_vocabulary,
            base=base,
            changed=changed,
            checked={name: stamps[name] for name in (MANIFEST, COMPAT, SCHEMA, TOKENS, DENSE, DELTA) if name in stamps},
        )

    @property
    def folder(self) -> Path:
        """Where its files lie on this machine; those of a version in a bucket, as far as they were fetched."""
        return self.source.folder

    @property
    def space(self) -> str:
        """Versions of one space have vectors that can be compared."""
        return self.manifest["space"]

    @property
    def parent(self) -> str | None:
        """The version it was trained on from."""
        return self.manifest["parent"]

    @property
    def compacts(self) -> str | None:
        """The delta whose rows these are, published whole."""
        return self.manifest.get("compacts")

    @property
    def vocabulary_info(self) -> dict[str, ValuesInfo]:
        """What its manifest, or that of a version it is a delta of, says of its vocabulary, by feature."""
        if self.own_vocabulary is not None or self.base is None:
            return self.own_vocabulary or {}
        return self.base.vocabulary_info

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The values its features take, a delta's its base's unless it brings one; ``None`` when it has none.

        A feature's file is read, and checked, when the feature is first asked for (``CorruptVersionError``).
        """
        if self.own_vocabulary is None:
            return None if self.base is None else self.base.vocabulary
        if not self.own_vocabulary:
            return None
        from embstore.store.vocabulary import StoredVocabulary
        from embstore.vocabulary import Vocabulary

        return Vocabulary(StoredVocabulary(self.source, self.files, self.own_vocabulary, self.schema))

    def status(self, feature: str, tokens_N: NDArray[Any]) -> NDArray[np.uint8]:
        """What each token of a feature is: an ``embstore.vocabulary.ValueStatus``, uint8 ``[N]``.

        By its vocabulary; of an exact feature that is not in it, by the tokens that have rows of their own; of any
        other feature, whatever is not missing is known.

        Args:
            tokens_N: uint64, or their bits as int64 (``embstore.tokens``).

        Raises:
            SchemaError: no such feature.
            CorruptVersionError: its vocabulary is not what was published.
        """
        from embstore.store.lookup import status

        return status(self, feature, tokens_N)

    def filtered(self, feature: str, tokens_N: NDArray[Any]) -> NDArray[Any]:
        """Tokens as they are looked up: those of values that the vocabulary drops as their stand-in's or as the
        pruned one.

        The same array when all stay; where a feature's vocabulary drops nothing, nothing is read either.

        Raises:
            CorruptVersionError: its vocabulary is not what was published.
        """
        info = self.vocabulary_info.get(feature)
        if info is None or not info.prunes:
            return tokens_N
        assert self.vocabulary is not None
        return self.vocabulary.filtered(feature, tokens_N)

    @cached_property
    def pruned(self) -> TokenFilter | None:
        """Which values its vocabulary prunes, for a restored table; ``None`` where it prunes none.

        Raises:
            CorruptVersionError: its vocabulary is not what was published.
        """
        from embstore.token_filter import TokenFilter

        names = [name for name, info in self.vocabulary_info.items() if info.prunes]
        if not names:
            return None
        assert self.vocabulary is not None
        return TokenFilter.of({name: self.vocabulary[name] for name in names})

    def lookup(self, feature: str, values: pa.Array | pa.ChunkedArray | Iterable[Any]) -> Tensor:
        """The vectors of raw values of one feature: bit for bit what the table, restored, would give on a CPU for the
        tokens that ``filtered`` gives.

        Only their rows are read. The buckets these lie in, and no others, are fetched where the store is in a bucket,
        and checked when they are first needed; so hold a version for many lookups.

        Args:
            feature: name.
            values: raw values, as the log's column holds them, ``None`` for missing; lists for list features. For a
                feature with a transform also what the transform gives.

        Returns:
            float32 ``[len(values), lookups * dim]``.

        Raises:
            SchemaError: no such feature, values of a type that is not categorical, or what its transform can't give.
            DataError: an integer beyond 64 bits, or text that is not Unicode.
            CorruptVersionError: rows, or ranges of rows, that are not what was published.
            StoreError: a bucket that doesn't give its files, or a cache that can't be written.
        """
        from embstore.store.lookup import lookup  # only those who look up pay for Arrow and the kernels

        return lookup(self, feature, values)

    @cached_property
    def plan(self) -> LookupPlan:
        """Which rows of the table each lookup may take.

        Raises:
            CorruptVersionError: not those of its manifest.
        """
        from embstore.store.lookup import plan_of

        return plan_of(self)

    @cached_property
    def exact_status(self) -> dict[str, TokenStatus]:
        """Of exact features, as far as ``status`` was asked of them."""
        return {}

    def changes(self) -> Overlay:
        """A delta's own rows, as they were read when it was opened.

        Raises:
            StoreError: it is a whole version.
        """
        if self.changed is None:
            raise StoreError(f"version {self.id}", expected="a delta", found="a whole version")
        return self.changed[0]

    def bundle(self) -> Bundle:
        """What it holds, to publish again: whole where it is a delta."""
        return Bundle(
            table=self.table,
            schema=self.schema,
            dense_state=self.dense,
            model=self.manifest["model"],
            metrics=self.manifest["metrics"],
            lineage={**self.manifest["lineage"], "space": self.space},
            columns=self.manifest["columns"],
            optimizer=None if self.optimizer is None else self.optimizer_state(),
            vocabulary=self.vocabulary,
        )

    def dense_state(self) -> dict[str, Tensor]:
        """The dense model and normalizer, names from ``"normalizer."`` and ``"network."``; a copy to train on."""
        return {name: tensor.clone() for name, tensor in self.dense.items()}

    def optimizer_state(self, rows: range | None = None) -> OptimizerState:
        """What training goes on from, a copy; of the table's tensors these rows, or all, are read and checked.

        Raises:
            StoreError: it was published without.
            CorruptVersionError: its files are not what was published.
        """
        info, of = self._optimizer_info(), self.optimizer_rows
        every = rows is None or len(rows) == self.table.num_rows
        return OptimizerState(
            name=info.name,
            steps=info.steps,
            rates=info.rates,
            table=of.whole() if rows is None or every else of.gather(torch.arange(rows.start, rows.stop)),
            dense=_tensors(self.source, DENSE_OPTIMIZER, self.files),
        )

    @cached_property
    def optimizer_rows(self) -> OptimizerRows:
        """The table's part of ``optimizer_state``, row by row: a bucket is read when a row of it is first asked for.

        Raises:
            StoreError: it was published without.
        """
        info = self._optimizer_info()
        if self.base is None or self.changed is None:
            buckets = OptimizerBuckets(self.source, self.table.layout, self.files, info)
            return OptimizerRows(buckets, self.table.overlays)
        under, (_, tensors) = self.base.optimizer_rows, self.changed
        return OptimizerRows(under.buckets, self.table.overlays, (*under.changes, tensors))

    def _optimizer_info(self) -> OptimizerInfo:
        if self.optimizer is None:
            do = "publish with optimizer=..., or train afresh on its rows"
            raise StoreError(f"version {self.id}", expected="an optimizer's state", found="none", do=do)
        return self.optimizer

    def verify(self, *, progress: Progress | None = None) -> None:
        """Read every file again and compare its length and sha256.

        Raises:
            CorruptVersionError: naming the file, what was expected and what was found.
        """
        format.verify(self.source, self.files, self.digest, progress=progress)
        if self.base is not None:
            self.base.verify(progress=progress)

    def check(self, files_of: Callable[[str], Files] | None = None) -> None:
        """Compare what lies there now, its bases too, with what was published, reading only what may be another.

        Every file must be there with its length. All but buckets are hashed too, each once by this process, and again
        when it was written since. Buckets, and bytes that a disk has lost without a write, are for ``verify``.

        Args:
            files_of: gives the files of a version by its id; those it was opened from when not given.

        Raises:
            CorruptVersionError: naming the file, what was expected and what was found.
        """
        version: Version | None = self
        while version is not None:
            source = version.source if files_of is None else files_of(version.id)
            stamps = source.stamps()
            if MANIFEST not in stamps:
                raise CorruptVersionError(source.where(MANIFEST), expected="a manifest", found="no file")
            format.check_files(source, version.files, {name: stamp.bytes for name, stamp in stamps.items()})
            files = {**version.files, MANIFEST: FileDigest(stamps[MANIFEST].bytes, version.digest)}
            written = {
                name: digest
                for name, digest in files.items()
                if not is_bucket(name) and version.checked.get(name) != stamps[name]
            }
            format.check_contents(source, written)
            version.checked.update({name: stamps[name] for name in written})
            version = version.base


def read_body(source: Files, *, version: str, digest: str) -> tuple[dict[str, Any], dict[str, FileDigest]]:
    """A version's manifest and what it says of the version's files, which are all there, each as long as it says.

    Raises:
        CorruptVersionError: it is not so.
        StoreError: a later embstore wrote it.
    """
    where = source.where(MANIFEST)
    sizes = source.sizes()  # before any file is opened: no folder or file in it is a link
    manifest = read_json(read_manifest(source, digest, sizes.get(MANIFEST, 0)), where)
    check_format(manifest, where)
    if manifest.get("version") != version:
        raise CorruptVersionError(where, expected=f"version {version}", found=shown(manifest.get("version")))
    files = read_files(manifest, where)
    format.check_files(source, files, sizes)
    return manifest, files


def _read_whole(source: Files, name: str, files: dict[str, FileDigest]) -> bytes:
    data = read_small(source.fetch(name, files[name]), MAX_SMALL_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != files[name].sha256:
        raise CorruptVersionError(source.where(name), expected=f"sha256 {files[name].sha256}", found=found)
    return data


def _tensors(source: Files, name: str, files: dict[str, FileDigest]) -> dict[str, Tensor]:
    return open_tensors(source.fetch(name, files[name]), sha256=files[name].sha256)


def _parse_schema(data: bytes, where: str) -> Schema:
    try:
        return Schema.from_yaml(data.decode("utf-8"))
    except (ConfigError, UnicodeDecodeError, TypeError) as error:
        raise CorruptVersionError(where, expected="a schema", found=str(error)) from error


def _check_names(
    files: dict[str, FileDigest], layout: Layout, delta: DeltaInfo | None, optimizer: OptimizerInfo | None, where: str
) -> None:
    """The files that hold tensors are those that the manifest's other keys call for."""
    if delta is None:
        check_buckets(files, layout, where, row_bytes=layout.row_bytes)
        if optimizer is not None:
            check_buckets(files, layout, where, folder="optimizer", row_bytes=optimizer.row_bytes)
    wanted = {DELTA: delta is not None, DENSE_OPTIMIZER: optimizer is not None}
    for name, needed in wanted.items():
        if (name in files) != needed:
            expected, found = ("one", "none") if needed else ("none", "one")
            raise CorruptVersionError(f"{where}: {name}", expected=expected, found=found)


def _opened(delta: DeltaInfo, open_base: Callable[[DeltaInfo], Version] | None, where: str) -> Version:
    if open_base is None:
        raise StoreError(f"{where} is a delta", expected="its base", found="none", do="open it from its store")
    base = open_base(delta)
    if base.digest != delta.base_digest:
        raise CorruptVersionError(f"{where}: base {delta.base}", expected=delta.base_digest, found=base.digest)
    if delta.depth != 1 + (base.delta.depth if base.delta is not None else 0):  # of one that was open already
        raise CorruptVersionError(f"{where}: depth", expected="one more than its base's", found=str(delta.depth))
    return base


def _check_base(base: Version, layout: Layout, manifest: dict[str, Any], tokens: dict[str, Tensor], where: str) -> None:
    ours, theirs = (layout, manifest["features"]), (base.table.layout, base.table.features)
    same = tokens.keys() == base.table.tokens.keys()
    if ours != theirs or not (same and all(torch.equal(of, base.table.tokens[name]) for name, of in tokens.items())):
        raise CorruptVersionError(where, expected=f"the table of its base {base.id}", found="another")

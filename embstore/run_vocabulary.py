"""The vocabulary of a run: values it has dropped are looked up as others, or as the pruned token; it is published.

vocabulary: pruned                                   a folder, of Vocabulary.to_parquet or of a vocabulary job
vocabulary: {path: pruned, unseen: prune}            values that are not in it are pruned as well
vocabulary: {store: store, version: production}      of a published version
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from embstore.continuous import place_of
from embstore.distributed import ALONE, Group
from embstore.errors import CheckpointError, ConfigError, StoreError, nearest

if TYPE_CHECKING:
    from embstore.logs import ParquetLog
    from embstore.progress import Progress
    from embstore.run_folder import RunFolder
    from embstore.schema import Schema
    from embstore.settings import RunConfig
    from embstore.store import Version
    from embstore.token_filter import TokenFilter
    from embstore.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class VocabularySource:
    """Where a run's vocabulary is.

    Args:
        path: a folder.
        store, version: a published version with one instead.
        unseen: what becomes of values that are not in it, of features that are: ``keep`` looks them up as they are,
            ``prune`` as the pruned token. As the vocabulary says when not given, which is ``keep`` unless it was
            published by a run that pruned them.
        sha256: what it must be (``Vocabulary.digest``, of the schema's features); a run writes down what it found.
    """

    path: str | None = None
    store: str | None = None
    version: str = "latest"
    unseen: Literal["keep", "prune"] | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.store is None):
            found = "neither" if self.path is None else "both"
            raise ConfigError("vocabulary", expected="a path (a folder) or a store", found=found)

    def read(self, schema: Schema) -> tuple[Vocabulary, VocabularySource]:
        """What it says of the schema's features, and the same settings with the version's id and the digest.

        Raises:
            LogError, SchemaError, DataError, StoreError: it can't be read, or there is none.
            ConfigError: it is of none of the features, or not that of ``sha256``.
        """
        from embstore.store import Store
        from embstore.vocabulary import Vocabulary

        ref = self.version
        if self.path is not None:
            whole = Vocabulary.from_parquet(self.path)
        else:
            assert self.store is not None
            version = Store(self.store).open(self.version)
            if version.vocabulary is None:
                raise StoreError(f"version {version.id}", expected="a vocabulary", found="none")
            whole, ref = version.vocabulary, version.id
        names = [feature.name for feature in schema.features if feature.name in whole]
        if not names:
            expected = f"one of the features {', '.join(feature.name for feature in schema.features)}"
            raise ConfigError(f"vocabulary {self.path or self.store}", expected=expected, found=", ".join(whole))
        of = {name: whole[name] for name in names}
        if self.unseen is not None:
            of = {name: replace(values, unseen=self.unseen) for name, values in of.items()}
        found = Vocabulary(of)
        digest = found.digest()
        if self.sha256 not in (None, digest):
            do = "give the vocabulary that it names, or take sha256 away and start afresh"
            raise ConfigError(
                f"vocabulary {self.path or self.store}", expected=f"sha256 {self.sha256}", found=digest, do=do
            )
        return found, replace(self, version=ref, sha256=digest)

    @property
    def deciding(self) -> dict[str, Any]:
        """What of it decides a run's result: not where it lies."""
        return {"sha256": self.sha256}

    @property
    def lineage(self) -> dict[str, Any]:
        """What a version's manifest says of it."""
        where = {"path": self.path} if self.path is not None else {"store": self.store, "version": self.version}
        return {"honoured": {**where, "unseen": self.unseen, "sha256": self.sha256}}


class RunVocabulary:
    """What a run honours, and which values it publishes.

    Args:
        config: of the run.
        schema: of its logs.
        files: its folder, where what is honoured is kept: wherever it came from may change.
        start: the version it goes on from, whose vocabulary it has unless it names one.
        group: processes that train together; rank 0 reads.

    Attributes:
        source: where what is honoured is, with its digest.

    Raises:
        LogError, SchemaError, DataError, StoreError, ConfigError: it can't be read, or features to be published are not
            in the schema.
    """

    def __init__(
        self, config: RunConfig, schema: Schema, files: RunFolder, *, start: Version | None = None, group: Group = ALONE
    ) -> None:
        self.schema, self.files, self.start, self.group = schema, files, start, group
        known = [feature.name for feature in schema.features]
        asked = False if config.publish is None else config.publish.vocabulary
        self._counted = tuple(known) if asked is True else tuple(asked or ())
        for name in self._counted:
            if name not in known:
                raise ConfigError(f"publish.vocabulary: no feature {name!r}", do=nearest(name, known))
        self._read: Vocabulary | None = None  # on rank 0, until it lies in the folder
        self.source = source = config.honoured
        if source is not None and source.sha256 is None:
            self.source = VocabularySource(**group.lead(lambda: asdict(self._pinned(source))))

    def check_types(self, columns: Mapping[str, str]) -> None:
        """Refuse values of another type than the log's, see ``check_kinds``."""

        def check() -> None:
            if self._read is not None:
                check_kinds(self._read, self.schema, columns)

        self.group.lead(check)

    def keep(self, columns: Mapping[str, str]) -> None:
        """Let it lie in the folder, which is the run's by now; rank 0's to do."""
        if self.source is None or (self._read is None and self.files.honoured() is not None):
            return
        if self._read is None:
            self._read, _ = self.source.read(self.schema)
            check_kinds(self._read, self.schema, columns)
        self.files.write_honoured(self._read)
        self._read = None

    @cached_property
    def filter(self) -> TokenFilter | None:
        """Which values are looked up as others, or as the pruned token: by its own vocabulary, or its version's."""
        from embstore.token_filter import TokenFilter

        if self.source is None:
            return None if self.start is None else self.start.pruned
        own = self.group.together(lambda: self._honoured)
        return None if own is None else TokenFilter.of(own)

    def collect(self, log: ParquetLog, progress: Progress) -> None:
        """Count the values that are published, unless the folder has them."""
        from embstore.vocabulary import Vocabulary

        if not self._counted:
            return

        def missing() -> list[str]:
            found, own = self.files.vocabulary(), self._honoured or ()
            names = [name for name in self._counted if name not in own]
            return [] if found is not None and found.keys() >= set(names) else names

        names = tuple(self.group.lead(missing))
        if not names:
            return
        with progress("values", log.rows) as bar:
            counted = Vocabulary.collect(log, names, progress=bar.advance, group=self.group)
        self.group.lead(lambda: self.files.write_vocabulary(counted))

    def published(self) -> Vocabulary | None:
        """What it honours, its own or of the version it goes on from, and what was counted; rank 0's to ask.

        Of features in its own, nothing is added: what that doesn't know is unseen.
        """
        from embstore.vocabulary import Vocabulary

        own, names = self._honoured, self._counted
        before = self.start.vocabulary if own is None and self.start is not None else own
        found = self.files.vocabulary() if names else None
        if found is None:
            return before
        counted = Vocabulary({name: found[name] for name in names if name in found and name not in (own or ())})
        return counted if before is None else before.merged(counted)

    def _pinned(self, source: VocabularySource) -> VocabularySource:
        there = self.files.config()
        was = None if there is None else there.honoured
        stores = source.store, None if was is None else was.store
        if was is not None and stores[0] is not None and stores[1] is not None and not source.version[:1].isdigit():
            same = place_of(stores[0]) == place_of(stores[1])  # an alias means what it meant when the run began
            source = replace(source, version=was.version if same else source.version)
        self._read, pinned = source.read(self.schema)
        return pinned

    @cached_property
    def _honoured(self) -> Vocabulary | None:
        """What it honours, as it lies in the folder.

        Raises:
            CheckpointError: another lies there, or none.
        """
        if self.source is None:
            return None
        found = self.files.honoured()
        digest = None if found is None else found.digest()
        if found is None or digest != self.source.sha256:
            do = "start afresh with --fresh"
            expected = f"its vocabulary, sha256 {self.source.sha256}"
            raise CheckpointError(f"{self.files.path}", expected=expected, found=digest or "none", do=do)
        return found


def check_kinds(vocabulary: Vocabulary, schema: Schema, columns: Mapping[str, str]) -> None:
    """Refuse values of another type than the log's: they would have other tokens, and nothing would be pruned.

    Args:
        columns: by feature, the type of its values in the training log.

    Raises:
        SchemaError: naming the feature.
    """
    from embstore.store.values import check_values

    for name, of in vocabulary.items():
        check_values(of.values.type, schema.feature(name), columns.get(name))

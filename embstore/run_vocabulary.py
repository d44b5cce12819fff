"""The vocabulary that a run honours: values it has dropped are looked up as their feature's pruned token.

vocabulary: pruned                                   a folder, of Vocabulary.to_parquet or of a vocabulary job
vocabulary: {path: pruned, unseen: prune}            values that are not in it are pruned as well
vocabulary: {store: store, version: production}      of a published version
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from embstore.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from embstore.schema import Schema
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

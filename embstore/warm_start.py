"""Where a run's rows start from: vectors by value that others have learnt, fitted to the table's rows.

    table:
      warm_start:
        - {store: vectors, version: latest, features: [user_id, movie_id]}     a published version's
        - {vectors: titles, features: {movie_words: movie_id}, frozen: true}   Parquet's; never trained

Vectors of another width than the rows are turned to their principal components, all features of an entry alike, and all
are scaled to the deviation of first rows. Suffixes: V values, W numbers of a vector, D numbers kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray

from embstore.continuous import place_of
from embstore.distributed import ALONE, Group
from embstore.errors import ConfigError, DataError, SchemaError, StoreError, nearest
from embstore.store import Store, Version

if TYPE_CHECKING:
    from embstore.embeddings.unified import UnifiedEmbedding
    from embstore.schema import Schema
    from embstore.store.warm_start import ValueVectors
    from embstore.token_filter import TokenFilter

FROZEN_SCALE = 1.0  # of features that are never trained: that of a standardised dense column
_WEIGHTS = ("weight", "count", "visits")  # columns that say how much a value counts, the first that is there
_PIECE_VALUES = 1 << 16  # looked up at a time


@dataclass(frozen=True, kw_only=True)
class WarmStartSettings:
    """Vectors that rows start from.

    Args:
        features: of the schema; a mapping where the vectors' feature has another name: ``{movie_id: item}``.
        vectors: Parquet: folders ``feature=NAME`` as an export has them, or, of one feature, a file or folder.
        store, version: a published version instead, with a vocabulary of the values.
        scale: the root mean square of the numbers as they start; the table's ``init_std`` when not given, 1 of frozen
            features.
        frozen: never train the rows: exact features alone, which then know the values that have vectors. All other
            values share zeros.
        sha256: what the vectors must be; a run writes down what it found.
    """

    features: tuple[str, ...] | dict[str, str]
    vectors: str | None = None
    store: str | None = None
    version: str = "latest"
    scale: float | None = None
    frozen: bool = False
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.vectors is None) == (self.store is None):
            found = "neither" if self.vectors is None else "both"
            raise ConfigError("table.warm_start", expected="vectors (Parquet) or a store", found=found)
        if not self.features:
            raise ConfigError("table.warm_start.features", expected="one or more", found="none")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ConfigError("table.warm_start.scale", expected="a number above 0", found=str(self.scale))

    @property
    def names(self) -> dict[str, str]:
        """By feature of the schema, what the vectors' is called."""
        return self.features if isinstance(self.features, dict) else {name: name for name in self.features}

    @property
    def deciding(self) -> dict[str, Any]:
        """What of it decides a run's result: not where the vectors lie."""
        own = asdict(self)
        return {"features": self.names, **{key: own[key] for key in ("scale", "frozen", "sha256")}}


class GivenVectors:
    """The vectors of one entry, read when they are first needed.

    Args:
        settings: of the entry.
        group: processes that open a version together.
    """

    def __init__(self, settings: WarmStartSettings, group: Group = ALONE) -> None:
        self.settings, self._group = settings, group

    @cached_property
    def version(self) -> Version | None:
        """The published version they are of."""
        how = self.settings
        return None if how.store is None else Store(how.store).open(how.version, group=self._group)

    @cached_property
    def by_feature(self) -> dict[str, ValueVectors]:
        """As they were given, by feature of the schema.

        Raises:
            StoreError, SchemaError, DataError, LogError: they can't be read, or are of different widths.
            ConfigError: they are not those of ``sha256``.
        """
        names = self.settings.names
        if self.version is not None:
            out = {name: _of_version(self.version, of) for name, of in names.items()}
        else:
            assert self.settings.vectors is not None
            out = {name: _of_parquet(self.settings.vectors, of) for name, of in names.items()}
        widths = {name: of.vectors_VW.shape[1] for name, of in out.items()}
        if empty := [name for name, of in out.items() if not len(of)]:
            raise DataError(f"vectors of {empty[0]!r}", expected="one or more", found="none")
        if len(set(widths.values())) > 1:
            do = "give each width an entry of its own"
            raise DataError("vectors of a table.warm_start entry", expected="one width", found=str(widths), do=do)
        found = _digest(out)
        if self.settings.sha256 not in (None, found):
            do = "give the vectors that it names, or take sha256 away and start afresh"
            expected = f"sha256 {self.settings.sha256}"
            raise ConfigError("vectors of table.warm_start", expected=expected, found=found, do=do)
        return out

    def pinned(self) -> WarmStartSettings:
        """The settings with the version's id and the vectors' digest."""
        if self.settings.sha256 is not None:
            return self.settings
        version = self.settings.version if self.version is None else self.version.id
        return replace(self.settings, version=version, sha256=_digest(self.by_feature))

    def forget(self) -> None:
        """Let go of what was read: training needs the memory."""
        self.__dict__.pop("by_feature", None)

    def check_types(self, schema: Schema, columns: Mapping[str, str]) -> None:
        """Refuse values of another type than the log's: they would have other tokens.

        Args:
            columns: by feature, the type of its values in the training log.

        Raises:
            SchemaError: naming the feature.
        """
        from embstore.column_types import stored_type
        from embstore.store.values import check_values

        for name, of in self.by_feature.items():
            check_values(stored_type(of.values.type), schema.feature(name), columns.get(name))

    def set_rows(self, table: UnifiedEmbedding, init_std: float) -> dict[str, Any]:
        """Let rows of the table be these vectors, and say what was done, in plain values.

        Raises:
            ConfigError: vectors narrower than a row.
        """
        from embstore.store.warm_start import set_rows

        how = self.settings
        scale = how.scale or (FROZEN_SCALE if how.frozen else init_std)
        fitted, kept = _fitted(table, self.by_feature)
        total = sum(of.vectors_VW.size for of in fitted.values())
        size = (sum(float(np.square(of.vectors_VW, dtype=np.float64).sum()) for of in fitted.values()) / total) ** 0.5
        factor = scale / size if size else 1.0
        scaled = {
            name: replace(of, vectors_VW=(of.vectors_VW * factor).astype(np.float32)) for name, of in fitted.items()
        }
        done = asdict(set_rows(table, scaled))
        return {
            **_source(self.version, how),
            "features": how.names,
            "sha256": how.sha256,
            "variance_kept": kept,
            **done,
        }


class FirstRows:
    """What the rows of a run start from: its entries, each pinned to the version and the vectors that it means.

    Args:
        entries: of the run.
        before: of the run that its folder holds: an alias means what it meant when that began.
        resumed: whether the rows are those of a version, which says what is frozen, and nothing is read.
        group: processes that train together.
    """

    def __init__(
        self,
        entries: Sequence[WarmStartSettings],
        before: Sequence[WarmStartSettings] = (),
        *,
        resumed: bool = False,
        group: Group = ALONE,
    ) -> None:
        self._given: list[GivenVectors] = []
        for number, entry in enumerate(entries):
            if not resumed and number < len(before):
                entry = _as_before(entry, before[number])
            given = GivenVectors(entry, group)
            if not resumed:
                given.settings = given.pinned()
            self._given.append(given)

    @property
    def settings(self) -> tuple[WarmStartSettings, ...]:
        """Of the entries, with what they mean."""
        return tuple(given.settings for given in self._given)

    def check_types(self, schema: Schema, columns: Mapping[str, str]) -> None:
        """As ``GivenVectors.check_types``."""
        for given in self._given:
            given.check_types(schema, columns)

    def frozen_tokens(self, pruned: TokenFilter | None) -> dict[str, torch.Tensor]:
        """By frozen feature, the sorted tokens of the values that have vectors, be they in a log or not, but for those
        that are looked up as pruned."""
        out = {}
        for given in self._given:
            for name, of in given.by_feature.items() if given.settings.frozen else ():
                tokens_V = of.tokens_V
                if pruned is not None:
                    tokens_V = tokens_V[pruned.of_feature(name, tokens_V) == tokens_V]
                out[name] = torch.from_numpy(tokens_V).unique()
        return out

    def set(self, table: UnifiedEmbedding, init_std: float) -> list[dict[str, Any]]:
        """Set the table's rows, let go of the vectors, and say what was done with each entry."""
        done = [given.set_rows(table, init_std) for given in self._given]
        self.forget()
        return done

    def forget(self) -> None:
        """As ``GivenVectors.forget``."""
        for given in self._given:
            given.forget()


def _as_before(entry: WarmStartSettings, was: WarmStartSettings) -> WarmStartSettings:
    """An alias of the same store means the version it meant."""
    if entry.store is None or was.store is None or entry.version[:1].isdigit():
        return entry
    same = place_of(entry.store) == place_of(was.store)
    return replace(entry, version=was.version) if same else entry


def check_features(entries: Sequence[WarmStartSettings], schema: Schema) -> None:
    """Entries whose features the schema has, each once, exact where frozen.

    Raises:
        ConfigError: naming the feature.
    """
    known = {feature.name: feature for feature in schema.features}
    seen: set[str] = set()
    for entry in entries:
        for name in entry.names:
            if name not in known:
                raise ConfigError(f"table.warm_start: no feature {name!r}", do=nearest(name, known))
            if name in seen:
                raise ConfigError(f"table.warm_start: feature {name!r}", expected="in one entry", found="in several")
            if entry.frozen and not known[name].exact:
                do = f"give the vectors a feature of their own: {{name: {name}_frozen, column: ..., exact: true}}"
                raise ConfigError(
                    f"table.warm_start: frozen {name!r}", expected="an exact feature", found="a hashed one", do=do
                )
            seen.add(name)


def frozen_features(entries: Sequence[WarmStartSettings]) -> tuple[str, ...]:
    """Names of the features whose rows are never trained."""
    return tuple(name for entry in entries if entry.frozen for name in entry.names)


def _of_version(version: Version, feature: str) -> ValueVectors:
    from embstore.store.warm_start import ValueVectors
    from embstore.tokens import tokenize

    version.schema.feature(feature, of=f"version {version.id}")
    if version.vocabulary is None or feature not in version.vocabulary:
        do = "publish it with one, or export its vectors and give them as Parquet"
        expected = f"a vocabulary of {feature!r}"
        raise StoreError(f"version {version.id}", expected=expected, found="none", do=do)
    known = version.vocabulary[feature]
    table = known.table(dropped=False)
    value = table.column("value")
    parts = [
        version.lookup(feature, value.slice(start, _PIECE_VALUES)).numpy()
        for start in range(0, len(value), _PIECE_VALUES)
    ]
    return ValueVectors(
        values=value,
        tokens_V=tokenize(value, name=feature).values.view(np.int64),
        vectors_VW=np.concatenate(parts) if parts else np.empty((0, 0), np.float32),
        weights_V=np.maximum(table.column("count").to_numpy(), 1).astype(np.float64),  # 0: nobody knows
    )


def _of_parquet(vectors: str, feature: str) -> ValueVectors:
    from embstore.store.values import open_dataset
    from embstore.store.warm_start import ValueVectors

    path = vectors_of_feature(vectors, feature)
    names = open_dataset(path, "vectors").schema.names
    weight = next((name for name in _WEIGHTS if name in names), None)
    return ValueVectors.read(path, weight_column=weight)


def vectors_of_feature(vectors: str, feature: str) -> str:
    """A feature's own folder among folders ``feature=NAME``; else what was given.

    Raises:
        SchemaError: the folders are other features'.
    """
    folders = Path(vectors).glob("feature=*/") if os.path.isdir(vectors) else ()
    known = {unquote(folder.name.partition("=")[2]): str(folder) for folder in folders}
    if known and feature not in known:
        raise SchemaError(f"vectors {vectors}: none of feature {feature!r}", do=nearest(feature, known))
    return known.get(feature, vectors)


def _digest(vectors: Mapping[str, ValueVectors]) -> str:
    """sha256 of values, vectors and weights, in whatever order and container they came."""
    digest = hashlib.sha256()
    for name, of in sorted(vectors.items()):
        order = np.argsort(of.tokens_V, kind="stable")
        digest.update(f"{len(name.encode())} {name} {of.vectors_VW.shape}\n".encode())
        for array in (of.tokens_V, of.vectors_VW, of.weights_V):
            digest.update(np.ascontiguousarray(array[order]).reshape(-1).data)
    return digest.hexdigest()


def _fitted(table: UnifiedEmbedding, given: Mapping[str, ValueVectors]) -> tuple[dict[str, ValueVectors], float | None]:
    """Vectors as wide as the features' lookups together or, where they aren't so wide, as one; and the share of their
    variance that the widest keep, ``None`` where all were left as they are."""
    width = next(iter(given.values())).vectors_VW.shape[1]
    if width < table.dim:
        do = "learn wider vectors, or take a smaller table.dim"
        raise ConfigError(
            "vectors of table.warm_start", expected=f"{table.dim} numbers or more", found=str(width), do=do
        )
    all_of_it = {name: table.feature(name).lookups * table.dim for name in given}
    wanted = {name: whole if whole <= width else table.dim for name, whole in all_of_it.items()}
    if set(wanted.values()) == {width}:
        return dict(given), None
    mean_W, basis_WD, kept = principal_components([of.vectors_VW for of in given.values()], max(wanted.values()))
    return {
        name: replace(of, vectors_VW=((of.vectors_VW - mean_W) @ basis_WD[:, : wanted[name]]).astype(np.float32))
        for name, of in given.items()
    }, kept


def principal_components(
    parts: Sequence[NDArray[np.float32]], width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The mean of all vectors, the ``width`` orthogonal directions in which they vary most, and the share of their
    variance along these.

    A direction's sign is such that its greatest number is positive.

    >>> ones = np.array([[0.0, 1.0], [0.0, -1.0], [0.5, 0.0], [-0.5, 0.0]], np.float32)
    >>> mean, basis, kept = principal_components([ones], 1)
    >>> basis.round(3).tolist(), round(kept, 3)
    ([[0.0], [1.0]], 0.8)
    """
    count = sum(map(len, parts))
    mean_W = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / count
    covariance_WW = np.zeros((len(mean_W), len(mean_W)))
    for part in parts:
        for start in range(0, len(part), _PIECE_VALUES):
            centred = part[start : start + _PIECE_VALUES] - mean_W
            covariance_WW += centred.T @ centred
    values_W, vectors_WW = np.linalg.eigh(covariance_WW)  # ascending
    basis_WD = vectors_WW[:, ::-1][:, :width]
    greatest = np.abs(basis_WD).argmax(axis=0)
    signs = np.where(basis_WD[greatest, np.arange(width)] < 0, -1.0, 1.0)
    total = float(values_W.sum())
    return mean_W, basis_WD * signs, float(values_W[::-1][:width].sum()) / total if total > 0 else 1.0


def _source(version: Version | None, how: WarmStartSettings) -> dict[str, Any]:
    """Where they are from, and what a version says of its own making."""
    if version is None:
        return {"vectors": how.vectors}
    return {"store": how.store, "version": version.id, "of": version.manifest["lineage"]["node2vec"]}

"""From a feature's tokens to the table's rows: which rows each lookup may take, and where its output goes.

    table row   0                num_rows                            total rows
                | sub-table 0 | sub-table 1 | ... | exact block: genre | exact block: hour |
                '------ hashed ----------------'  '------ values seen in the log, + 1 -----'

    output      [ user lookup 0 | user lookup 1 | genre lookup 0 | ... ]    dim numbers each

Shape suffixes: B rows of the batch, N tokens of a feature, T table rows of all lookups, D dim, W output width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore import hashing
from embstore.batch import FeatureTokens
from embstore.errors import ConfigError
from embstore.kernels.known import KnownIndex, index_known
from embstore.schema import Feature


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """One row of the table per token of a feature.

    Args:
        feature: name.
        salt: of the hash; unused for exact blocks.
        base, size: the row range the lookup falls in.
        exact: rows are ranks among the feature's known tokens instead of hashes.
        mean: lists are averaged rather than summed.
        given: tokens are the rows themselves, counted from ``base`` (``Request.of_rows``).
    """

    feature: str
    salt: int
    base: int
    size: int
    exact: bool
    mean: bool
    given: bool = False


@dataclass(frozen=True, kw_only=True)
class LookupPlan:
    """All lookups of a table, in the order of its output.

    Args:
        names: features, in order.
        lookups: in order; those of a feature are neighbours.
        exact_tokens: sorted int64 tokens of each exact feature.
        dim: D.
        num_rows: rows of the whole table, exact blocks included.
    """

    names: tuple[str, ...]
    lookups: tuple[Lookup, ...]
    exact_tokens: Mapping[str, Tensor]
    dim: int
    num_rows: int

    @classmethod
    def build(
        cls,
        features: Sequence[Feature],
        *,
        num_rows: int,
        dim: int,
        num_tables: int,
        seed: int,
        exact_tokens: Mapping[str, Tensor],
    ) -> LookupPlan:
        """Lay the table out: ``num_rows`` hashed rows in ``num_tables`` equal parts, then the exact blocks.

        An exact block holds, per lookup, one row for each known token and one that all other values share.

        Raises:
            ConfigError: sizes that don't fit together.
        """
        names = [feature.name for feature in features]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"feature {min(twice)!r} is declared twice", do="give each its own name")
        hashed = [feature.name for feature in features if not feature.exact]
        if num_tables < 1 or num_rows % num_tables:
            raise ConfigError("table rows", expected=f"a multiple of num_tables={num_tables}", found=str(num_rows))
        if hashed and num_rows < num_tables:
            raise ConfigError(
                "table rows", expected=f"at least 1 in each sub-table (for {hashed[0]!r})", found=str(num_rows)
            )
        lookups, base = [], num_rows
        for feature in features:
            if feature.exact and feature.name not in exact_tokens:
                raise ConfigError(
                    f"feature {feature.name!r} is exact",
                    expected="its known tokens",
                    found="none",
                    do="collect them from the training log with embstore.vocabulary.exact_tokens",
                )
            for number in range(feature.lookups):
                salt = hashing.salt(feature.name, number, seed)
                if feature.exact:
                    start, size = base, len(exact_tokens[feature.name]) + 1
                    base += size
                else:
                    size = num_rows // num_tables
                    start = hashing.sub_table(salt, num_tables) * size
                lookups.append(
                    Lookup(
                        feature=feature.name,
                        salt=salt,
                        base=start,
                        size=size,
                        exact=feature.exact,
                        mean=feature.pooling == "mean",
                    )
                )
        return cls(
            names=tuple(names),
            lookups=tuple(lookups),
            exact_tokens={feature.name: exact_tokens[feature.name] for feature in features if feature.exact},
            dim=dim,
            num_rows=base,
        )

    @property
    def width(self) -> int:
        """W: numbers in one output row."""
        return len(self.lookups) * self.dim

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each feature's numbers lie in the output."""
        out: dict[str, slice] = {}
        for i, lookup in enumerate(self.lookups):
            start = out[lookup.feature].start if lookup.feature in out else i * self.dim
            out[lookup.feature] = slice(start, (i + 1) * self.dim)
        return out

    @cached_property
    def arrays(self) -> PlanArrays:
        """The same as arrays."""
        known = [self.exact_tokens.get(name, torch.empty(0, dtype=torch.int64)).cpu().numpy() for name in self.names]
        return PlanArrays(
            feature_L=np.array([self.names.index(lookup.feature) for lookup in self.lookups], dtype=np.int64),
            salt_L=np.array([lookup.salt for lookup in self.lookups], dtype=np.uint64),
            base_L=np.array([lookup.base for lookup in self.lookups], dtype=np.int64),
            size_L=np.array([lookup.size for lookup in self.lookups], dtype=np.int64),
            exact_L=np.array([lookup.exact for lookup in self.lookups], dtype=np.bool_),
            mean_L=np.array([lookup.mean for lookup in self.lookups], dtype=np.bool_),
            given_L=np.array([lookup.given for lookup in self.lookups], dtype=np.bool_),
            known_K=np.concatenate([np.empty(0, dtype=np.int64), *known]),
            known_start_F=np.cumsum([0, *map(len, known)], dtype=np.int64),
        )

    @cached_property
    def known_index(self) -> KnownIndex:
        """The known tokens of exact features, to look ranks up at once."""
        return index_known(self.arrays.known_K, self.arrays.known_start_F)

    def only(self, *features: str) -> LookupPlan:
        """The lookups of these features, in this order, into the same table."""
        if features not in self._parts:
            lookups = tuple(lookup for name in features for lookup in self.lookups if lookup.feature == name)
            self._parts[features] = replace(self, names=features, lookups=lookups)
        return self._parts[features]

    @cached_property
    def by_row(self) -> LookupPlan:
        """The same output from numbers of rows: a feature, named by its place, for each lookup."""
        lookups = tuple(
            replace(lookup, feature=str(i), base=0, exact=False, given=True) for i, lookup in enumerate(self.lookups)
        )
        return replace(self, names=tuple(lookup.feature for lookup in lookups), lookups=lookups, exact_tokens={})

    @cached_property
    def _parts(self) -> dict[tuple[str, ...], LookupPlan]:
        return {}

    def rows_of(self, lookup: Lookup, tokens_N: Tensor) -> Tensor:
        """Table rows, int64 ``[N]``, of tokens (int64 bits) on any device."""
        if lookup.given:
            return tokens_N + lookup.base
        if lookup.exact:
            known = self.exact_tokens[lookup.feature].to(tokens_N.device)
            if not len(known):
                return torch.full_like(tokens_N, lookup.base)
            rank = torch.searchsorted(known, tokens_N).clamp_(max=len(known) - 1)
            return torch.where(known[rank] == tokens_N, rank, len(known)) + lookup.base
        if tokens_N.device.type == "cpu":
            tokens = tokens_N.contiguous().numpy().view(np.uint64)
            return torch.from_numpy(hashing.rows(tokens, lookup.salt, lookup.size)).add_(lookup.base)
        return hashing.torch_rows(tokens_N, lookup.salt, lookup.size).add_(lookup.base)


class PlanArrays(NamedTuple):
    """A plan as arrays, for fused kernels. Suffixes: L lookups, F features, K known tokens of all exact features.

    Args:
        feature_L: int64, each lookup's feature, by its place in ``names``.
        salt_L: uint64.
        base_L: int64, first row of the lookup's range.
        size_L: int64, rows of the range. An exact range holds the known tokens' rows, then the one others share.
        exact_L, mean_L, given_L: bool.
        known_K: int64, sorted within each exact feature.
        known_start_F: int64 ``[F + 1]``: feature f knows ``known_K[known_start_F[f]:known_start_F[f + 1]]``.
    """

    feature_L: NDArray[np.int64]
    salt_L: NDArray[np.uint64]
    base_L: NDArray[np.int64]
    size_L: NDArray[np.int64]
    exact_L: NDArray[np.bool_]
    mean_L: NDArray[np.bool_]
    given_L: NDArray[np.bool_]
    known_K: NDArray[np.int64]
    known_start_F: NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """A batch of tokens under a plan: what a kernel looks up.

    Fused kernels read ``tokens`` and ``plan``; ``rows_T`` is for those that need the rows spelled out.
    """

    tokens: FeatureTokens
    plan: LookupPlan

    @classmethod
    def of_rows(cls, rows_T: Tensor, dim: int, num_rows: int) -> Request:
        """Of a table's rows by number: the output is ``[T, dim]``."""
        tokens = FeatureTokens(("rows",), rows_T, (0, len(rows_T)), {}, len(rows_T))
        lookup = Lookup(feature="rows", salt=0, base=0, size=num_rows, exact=False, mean=False, given=True)
        return cls(tokens, LookupPlan(names=("rows",), lookups=(lookup,), exact_tokens={}, dim=dim, num_rows=num_rows))

    def by_row(self, rows_T: Tensor) -> Request:
        """The same lookups of rows by number, those of ``rows_T`` in place of ``self.rows_T``."""
        starts, offsets = [0], {}
        for i, (_, rows, bounds) in enumerate(self.parts):
            starts.append(starts[-1] + len(rows))
            if bounds is not None:
                offsets[str(i)] = bounds
        plan = self.plan.by_row
        return Request(FeatureTokens(plan.names, rows_T, tuple(starts), offsets, self.tokens.rows), plan)

    @cached_property
    def parts(self) -> tuple[tuple[Lookup, Tensor, Tensor | None], ...]:
        """(lookup, its rows, its offsets or None) in the plan's order."""
        out = []
        for lookup in self.plan.lookups:
            tokens_N, offsets = self.tokens.feature(lookup.feature)
            out.append((lookup, self.plan.rows_of(lookup, tokens_N), offsets))
        return tuple(out)

    @cached_property
    def rows_T(self) -> Tensor:
        """The rows of all lookups, one after the other; rows may repeat."""
        rows = [rows for _, rows, _ in self.parts]
        return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64, device=self.tokens.values_N.device)

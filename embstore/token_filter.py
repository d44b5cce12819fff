"""Which tokens are looked up as their feature's pruned token: what training and scoring make of a vocabulary.

    vocabulary   user: ann kept, eve dropped        tags: a, b kept; unseen values pruned
    a batch      user [ann   eve    bob]            tags [a c      | b | missing]
    becomes      user [ann   pruned bob]            tags [a pruned | b | missing]

Tokens of values that are dropped, or of those that are kept where all others are pruned, lie in a hash table for each
feature on the host; on a GPU they are searched sorted. Suffix: N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.batch import FeatureTokens
from embstore.hashing import MISSING_TOKEN, PRUNED_TOKEN
from embstore.kernels.known import prune, token_places

if TYPE_CHECKING:
    from embstore.feature_values import FeatureValues

_MISSING, _PRUNED = np.int64(MISSING_TOKEN), np.int64(PRUNED_TOKEN)


class TokenFilter:
    """Maps tokens of pruned values to the pruned token; those of missing values stay.

    Args:
        features: by name, those that have any.

    >>> from embstore.feature_values import FeatureValues
    >>> users = FeatureValues.of("user", ["ann", "eve"], kept=[True, False])
    >>> pruned = TokenFilter.of({"user": users})
    >>> tokens = FeatureTokens.from_columns({"user": ["ann", "eve", "bob"]})
    >>> (pruned(tokens).values_N == PRUNED_TOKEN).tolist()
    [False, True, False]
    """

    def __init__(self, features: Mapping[str, PrunedTokens]) -> None:
        self.features = dict(features)

    @classmethod
    def of(cls, vocabulary: Mapping[str, FeatureValues]) -> TokenFilter | None:
        """Of the values of features; ``None`` where nothing is pruned."""
        found = {name: PrunedTokens.of(values) for name, values in vocabulary.items() if values.prunes}
        return cls(found) if found else None

    def __call__(self, tokens: FeatureTokens) -> FeatureTokens:
        """The tokens as they are looked up, on their device; the same object when none is pruned."""
        if tokens.values_N.device.type == "cpu":
            return self._on_host(tokens)
        out_N = tokens.values_N.clone()
        for name, start, stop in self._parts(tokens):
            out_N[start:stop] = self.features[name].on_device(out_N[start:stop])
        return replace(tokens, values_N=out_N)

    def of_feature(self, name: str, tokens_N: NDArray[Any]) -> NDArray[Any]:
        """Tokens of one feature, uint64 or their bits as int64; no copy when none is pruned."""
        if name not in self.features:
            return tokens_N
        out_N = np.array(tokens_N)
        return out_N if self.features[name].on_host(out_N.view(np.int64)) else tokens_N

    def _on_host(self, tokens: FeatureTokens) -> FeatureTokens:
        parts = self._parts(tokens)
        if not parts:
            return tokens
        out_N, changed = tokens.values_N.clone(memory_format=torch.contiguous_format), 0
        values_N = out_N.numpy()
        for name, start, stop in parts:
            changed += self.features[name].on_host(values_N[start:stop])
        return replace(tokens, values_N=out_N) if changed else tokens

    def _parts(self, tokens: FeatureTokens) -> list[tuple[str, int, int]]:
        bounds = zip(tokens.names, tokens.starts, tokens.starts[1:], strict=False)
        return [part for part in bounds if part[0] in self.features]

    def __deepcopy__(self, memo: object) -> TokenFilter:
        return self  # nothing changes it


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedTokens:
    """Those of one feature.

    Args:
        tokens_K: int64, distinct, ascending.
        held: whether they are the pruned ones, or else the only ones that are not.
    """

    tokens_K: NDArray[np.int64]
    held: bool

    @classmethod
    def of(cls, values: FeatureValues) -> PrunedTokens:
        """Of a feature's values; a token that a kept and a dropped value have counts as kept."""
        kept_K, dropped_K = (np.unique(values.tokens[of].view(np.int64)) for of in (values.kept, ~values.kept))
        if values.unseen == "prune":
            return cls(tokens_K=kept_K, held=False)
        return cls(tokens_K=np.setdiff1d(dropped_K, kept_K, assume_unique=True), held=True)

    @cached_property
    def places_P(self) -> NDArray[np.int64]:
        """The hash table."""
        return token_places(self.tokens_K[self.tokens_K != _MISSING], _MISSING)

    def on_host(self, token_N: NDArray[np.int64]) -> int:
        """Prune in place; how many have changed."""
        return int(prune(token_N, self.places_P, self.held, _MISSING, _PRUNED))

    def on_device(self, token_N: Tensor) -> Tensor:
        """The same of a tensor anywhere, into a new one."""
        known_K = self._copies.get(token_N.device)
        if known_K is None:
            known_K = self._copies[token_N.device] = torch.from_numpy(self.tokens_K).to(token_N.device)
        if len(known_K):
            at_N = torch.searchsorted(known_K, token_N).clamp_(max=len(known_K) - 1)
            found_N = known_K[at_N] == token_N
        else:
            found_N = torch.zeros_like(token_N, dtype=torch.bool)
        pruned_N = (found_N == self.held) & (token_N != MISSING_TOKEN)
        return torch.where(pruned_N, PRUNED_TOKEN, token_N)

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

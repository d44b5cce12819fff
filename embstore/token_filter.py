"""Which tokens are looked up as another: what training and scoring make of a vocabulary.

    vocabulary   user: ann, tom kept; eve dropped; joe dropped, tom stands in for him
                 tags: a, b kept; unseen values pruned
    a batch      user [ann   eve    joe bob]        tags [a c      | b | missing]
    becomes      user [ann   pruned tom bob]        tags [a pruned | b | missing]

``pruned`` is the feature's pruned token. Tokens of values that are dropped, and those of kept ones where all others are
pruned, lie in a hash table for each feature on the host; on a GPU they are searched sorted. Suffix: N tokens.
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
    """Maps tokens of dropped values to those they are looked up as; those of missing values stay.

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
        """Tokens of one feature, uint64 or their bits as int64; the same array when all stay."""
        return self.features[name].replaced(tokens_N) if name in self.features else tokens_N

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
        into_K: int64, what each is looked up as; one that is not another's stays.
        others_too: whether tokens that are not among them are looked up as the pruned token, or stay.
    """

    tokens_K: NDArray[np.int64]
    into_K: NDArray[np.int64]
    others_too: bool

    @classmethod
    def of(cls, values: FeatureValues) -> PrunedTokens:
        """Of a feature's values; a token that a kept and a dropped value have counts as kept."""
        token_V, others_too = values.tokens.view(np.int64), values.unseen == "prune"
        kept_K = np.unique(token_V[values.kept])
        into_V = np.full(len(token_V), _PRUNED)
        if values.stand_in is not None:
            into_V = np.where(values.stand_in >= 0, token_V[values.stand_in], _PRUNED)
        dropped_K, first_K = np.unique(token_V[~values.kept], return_index=True)
        into_K = into_V[~values.kept][first_K]
        # Where others are pruned, so are these without being here.
        here_K = ~np.isin(dropped_K, kept_K) & ((into_K != _PRUNED) | (not others_too))
        tokens_K, into_K = dropped_K[here_K], into_K[here_K]
        if others_too:
            tokens_K, into_K = np.concatenate([tokens_K, kept_K]), np.concatenate([into_K, kept_K])
        order_K = np.argsort(tokens_K)
        return cls(tokens_K=tokens_K[order_K], into_K=into_K[order_K], others_too=others_too)

    @cached_property
    def places_P2(self) -> NDArray[np.int64]:
        """The hash table."""
        there_K = self.tokens_K != _MISSING
        return token_places(self.tokens_K[there_K], self.into_K[there_K], _MISSING)

    def on_host(self, token_N: NDArray[np.int64]) -> int:
        """Replace in place; how many have changed."""
        return int(prune(token_N, self.places_P2, self.others_too, _MISSING, _PRUNED))

    def replaced(self, tokens_N: NDArray[Any]) -> NDArray[Any]:
        """The same of uint64 or their bits as int64, into a new array; the one that is given when all stay."""
        out_N = np.array(tokens_N)
        return out_N if self.on_host(out_N.view(np.int64)) else tokens_N

    def on_device(self, token_N: Tensor) -> Tensor:
        """The same of a tensor anywhere, into a new one."""
        copies = self._copies.get(token_N.device)
        if copies is None:
            copies = tuple(torch.from_numpy(of_K).to(token_N.device) for of_K in (self.tokens_K, self.into_K))
            self._copies[token_N.device] = copies
        known_K, into_K = copies
        out_N = torch.full_like(token_N, PRUNED_TOKEN) if self.others_too else token_N
        if len(known_K):
            at_N = torch.searchsorted(known_K, token_N).clamp_(max=len(known_K) - 1)
            out_N = torch.where(known_K[at_N] == token_N, into_K[at_N], out_N)
        return torch.where((token_N == MISSING_TOKEN) | (token_N == PRUNED_TOKEN), token_N, out_N)

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

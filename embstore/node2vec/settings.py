"""A node2vec job's settings: what its YAML file holds.

graph: {log: logs/train, ...}                     see ``embstore.node2vec.graph_settings``
walks: {p: 1, q: 0.5, length: 40}                 see ``embstore.node2vec.walks``
skip_gram: {dim: 64}                              see ``embstore.node2vec.skipgram``
start: {prior: spectral}                          StartSettings
propagation: 0.25                                 see ``embstore.node2vec.propagation``
evaluate: {links: 0.1}                            EvaluateSettings
publish: {store: store}                           PublishSettings
output: runs/node2vec
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from embstore.config import load_yaml, parse
from embstore.errors import ConfigError
from embstore.node2vec.graph_settings import GraphSettings
from embstore.node2vec.skipgram import SkipGramSettings
from embstore.node2vec.walks import WalkSettings

_NOT_DECIDING = ("publish", "output", "threads", "checkpoint_minutes")


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """The vectors that training begins with.

    Args:
        prior: ``random``, or ``spectral``: those of the graph's matrix, see ``embstore.node2vec.spectral``.
        vectors: folder of a former job: a value that is in both has its former vector (and that as a centre), every
            other one the prior's.
    """

    prior: Literal["random", "spectral"] = "random"
    vectors: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How the vectors are judged.

    Args:
        links: share of the edges that is held out: walks never see them, and the vectors are to tell them from pairs
            that are no edges.
        operator: that makes a pair's features of two vectors, of ``embstore.node2vec.links.OPERATORS``.
        seed: of which these are.
    """

    links: float = 0.1
    operator: Literal["average", "hadamard", "weighted_l1", "weighted_l2"] = "hadamard"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.links < 1:
            raise ConfigError("evaluate.links", expected="a share between 0 and 1", found=str(self.links))
        if not 0 <= self.seed < 2**63:
            raise ConfigError("evaluate.seed", expected="0 to 2^63 - 1", found=str(self.seed))


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """Where the vectors are published.

    Args:
        store: a folder or URI.
    """

    store: str


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """A job, as its YAML file has it. The least there is: ``graph``.

    Args:
        graph: what is a node, and what an edge.
        walks: how to walk.
        skip_gram: how to train.
        start: from which vectors.
        propagation: the part, 0 to 1, that neighbours have in each vector at the end.
        evaluate: how they are judged; not, when not given.
        publish: where to; nowhere when not given.
        deterministic: train by one thread, the same bytes always; else by ``threads`` that don't wait for each other,
            which is faster and never the same twice.
        threads: of this process; as many as it has cores when not given.
        checkpoint_minutes: between two checkpoints of training; none on the way when null.
        keep_walks: whether walks are written down, too.
        output: the job's folder.
    """

    graph: GraphSettings
    walks: WalkSettings = field(default_factory=WalkSettings)
    skip_gram: SkipGramSettings = field(default_factory=SkipGramSettings)
    start: StartSettings = field(default_factory=StartSettings)
    propagation: float = 0.0
    evaluate: EvaluateSettings | None = None
    publish: PublishSettings | None = None
    deterministic: bool = True
    threads: int | None = None
    checkpoint_minutes: float | None = 5.0
    keep_walks: bool = False
    output: str = "runs/node2vec"

    def __post_init__(self) -> None:
        if not 0 <= self.propagation <= 1:
            raise ConfigError("config.propagation", expected="a share from 0 to 1", found=str(self.propagation))
        if self.threads is not None and self.threads < 1:
            raise ConfigError("config.threads", expected="1 or more", found=str(self.threads))
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes >= 0:
            raise ConfigError("config.checkpoint_minutes", expected="0 or more", found=str(self.checkpoint_minutes))
        if self.start.vectors is not None and Path(self.start.vectors).resolve() == Path(self.output).resolve():
            do = "name another folder with --output"
            raise ConfigError("config.output", expected="another folder than start.vectors", found=self.output, do=do)

    @classmethod
    def from_yaml(cls, path: str | Path) -> JobSettings:
        """Parse a file.

        Raises:
            ConfigError: an unknown key (the nearest is named), a missing one, or a value of the wrong type.
        """
        return parse(cls, load_yaml(path))

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the result, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_DECIDING}


def differing(settings: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Dotted names of what is not the same in two mappings of mappings."""
    ours, theirs = _flat(settings), _flat(before)
    missing = object()
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key, missing) != theirs.get(key, missing))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out

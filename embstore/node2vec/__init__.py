"""node2vec: from a graph to vectors of its nodes (Grover & Leskovec 2016).

    logs ──edges──> Graph ──Walker──> walks ──SkipGram──> vectors ──> a version, rows of a table, features

The job that does all of it, on one machine or a Ray cluster, is ``embstore.pipelines.node2vec``.
"""

from embstore.node2vec.edges import GraphSettings, build_graph
from embstore.node2vec.graph import Graph
from embstore.node2vec.skipgram import SkipGram, SkipGramSettings
from embstore.node2vec.walks import Walker, WalkSettings

__all__ = ["Graph", "GraphSettings", "SkipGram", "SkipGramSettings", "WalkSettings", "Walker", "build_graph"]

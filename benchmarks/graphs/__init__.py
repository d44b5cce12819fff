"""Graphs of the node2vec benchmarks, and the processes that make vectors of them."""

"""Ray jobs around embstore: each is a plain function, and a thin wrapper that runs it on a cluster.

``train`` is a run of ``embstore train`` on many workers; ``serve`` is ``embstore serve`` by many replicas;
``node2vec`` is a log's vectors, by stages.
"""

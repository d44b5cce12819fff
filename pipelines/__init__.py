"""Ray jobs around embstore: each is a plain function, and a thin wrapper that runs it on a cluster.

``train`` is the first: a run of ``embstore train`` on many workers.
"""

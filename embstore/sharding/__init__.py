"""One table over many processes: each holds a range of its rows, and torchrec's collectives bring rows to who asks.

UnifiedEmbedding(..., group=group)
    exchange.py     a batch's rows, there and back
    batch_norm.py   what of the network must see the whole batch
    draws.py        dropout's masks, as one process draws them for the whole batch
"""

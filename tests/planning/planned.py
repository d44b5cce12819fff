"""Workloads and a machine to plan with, and the odds of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from embstore.planning import (
    Machine,
    Workload,
)

TEN_BILLION = 10_000_000_000

# Rates and shares of 1, so that seconds can be worked out by hand.
PLAIN = Machine(
    name="plain",
    kind="cpu",
    memory_gb=100,
    reserved_gb=0,
    ranks_per_host=2,
    memory_gbps=1,
    stream_share=1,
    gather_share=1,
    link_share=1,
    flops_share=1,
    intra_gbps=1,
    inter_gbps=0.5,
    tflops=0.001,
    dedup_mps=1,
    collective_us=0,
    peer_us=0,
)


def probabilities(rows: int, exponent: float) -> np.ndarray:
    weights = 1 / np.arange(1, rows + 1) ** exponent
    return weights / weights.sum()


workloads = st.builds(
    Workload,
    rows=st.integers(1, 10**11),
    dim=st.integers(1, 64).map(lambda n: 4 * n),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    optimizer=st.sampled_from(["rowwise_adagrad", "adagrad", "adam", "sgd"]),
    lookups=st.floats(0.5, 500),
    batch=st.integers(1, 100_000),
    skew=st.sampled_from([0.0, 0.8, 1.05, 1.5]),
    dense_parameters=st.integers(0, 10**9),
    l2=st.booleans(),
    tracked=st.booleans(),
)

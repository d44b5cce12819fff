"""What a sharded table needs and what a step of it takes, before a machine is rented.

    Workload, Machine, world ──> predict() ──> Prediction      memory, bytes exchanged, seconds, what limits
                                 cheapest()                    the smallest worlds that fit, and that are fast enough
                                 ask_torchrec()                the estimate of torchrec's own planner, to stand beside

Everything but ``ask_torchrec`` is arithmetic on numbers: no torch, no process group, no table.
"""

from __future__ import annotations

from embstore.planning.cost import CacheUse, Prediction, assumptions, predict
from embstore.planning.machines import MACHINES, Machine, machine, read_rates, this_host
from embstore.planning.planner import TorchrecEstimate, ask_torchrec, differences
from embstore.planning.skew import expected_unique, popular_share
from embstore.planning.workload import Workload, memory
from embstore.planning.worlds import Cheapest, cheapest, worlds

__all__ = [
    "MACHINES",
    "CacheUse",
    "Cheapest",
    "Machine",
    "Prediction",
    "TorchrecEstimate",
    "Workload",
    "ask_torchrec",
    "assumptions",
    "cheapest",
    "differences",
    "expected_unique",
    "machine",
    "memory",
    "popular_share",
    "predict",
    "read_rates",
    "this_host",
    "worlds",
]

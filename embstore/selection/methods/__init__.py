"""The methods that Feature Gradients are compared with, by name: ``score(name, source, ...)`` gives ``Scores``.

    Rows      what the log's rows say         random, frequency, lift, mutual_information, lasso
    Trained   what a trained model does       permutation, sfs, shark, leave_one_out, leave_out_together
    Search    what a model with gates learns  optfs, autofield, lpfs

Scores here are shares of the best one: only their order means something. docs/selection.md tells the methods apart.
"""

from embstore.selection.methods import autofield, left_out, lpfs, optfs, permutation, taylor, together  # noqa: F401
from embstore.selection.methods.counts import Counts
from embstore.selection.methods.embedded import Trained
from embstore.selection.methods.gates import Search
from embstore.selection.methods.lasso import lasso_weights
from embstore.selection.methods.registry import Rows, described, names, register, score

__all__ = ["Counts", "Rows", "Search", "Trained", "described", "lasso_weights", "names", "register", "score"]

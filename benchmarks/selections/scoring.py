"""Scores of each method, by the training log and, for some, the model that was trained on it with all values.

    values    all methods but ``autofield`` and ``lpfs``, which know fields alone; ``best_fields_share_alike`` first
              leaves out fields that ``leave_one_out`` ranks last, as many as validation is best without
    fields    all but ``frequency``, to which every field is in every row, ``leave_out_together``, which is
              ``leave_one_out`` there, and ``share_alike``, which is of values

Methods that train gates train a model of their own, as long as any here, with the settings of their papers and code;
rates of gates are larger for as many steps as there are here (some hundred, where the papers have ten thousands).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.retraining import Retraining
from embstore import models
from embstore.ctr import CtrModel
from embstore.run import Run
from embstore.selection import FeatureGradientsSettings, LogBatches, Scores, fit
from embstore.selection.alike import share_alike
from embstore.selection.methods import Rows, Search, Trained, score
from embstore.threads import usable_cores
from embstore.vocabulary import Vocabulary, exact_tokens

FREQUENCY, RANDOM, FEATURE_GRADIENTS = "frequency", "random", "feature_gradients"
TOGETHER = "leave_out_together"  # whose scores are for a share
ALIKE = "share_alike"  # which has no scores: what it drops has a stand-in
BOTH = "best_fields_share_alike"  # the same of a model without the fields that it is better without
MODEL_BASED = (ALIKE, TOGETHER, "leave_one_out", "shark", "sfs", "permutation")
QUICK = (FREQUENCY, ALIKE)
COUNTING = ("lift", "mutual_information", "lasso")
METHODS = (FREQUENCY, RANDOM, BOTH, *MODEL_BASED, *COUNTING, "optfs", FEATURE_GRADIENTS)
FIELD_METHODS = (RANDOM, *MODEL_BASED[2:], *COUNTING, "optfs", "autofield", "lpfs", FEATURE_GRADIENTS)
SEARCH: dict[str, dict[str, Any]] = {
    "values": {"level": "values", "epochs": 8, "batches_per_step": 2},
    "fields": {"level": "both", "epochs": 8, "batches_per_step": 2},
}
GATES: dict[str, dict[str, Any]] = {
    "optfs": {"start": 0.5, "temperature": 200.0, "penalty": 1e-8, "learning_rate": 1e-2},
    "autofield": {"every": 1, "learning_rate": 1e-2},
    "lpfs": {"learning_rate": 1e-2},
}


def kept_by(
    method: str, task: Retraining, model: Callable[[], CtrModel], share: float, found: Scores | None
) -> Vocabulary:
    """The vocabulary in which a method keeps this share of all values.

    Args:
        found: what ``scores`` says; not of ``share_alike``.
    """
    if found is not None:
        return task.pruned(task.best_D(found, share))
    return alike(task, model(), round(share * len(task.values_A)))


def alike(task: Retraining, model: CtrModel, rows: int) -> Vocabulary:
    """The vocabulary in which values that the model treats alike share so many rows."""
    source = Trained(model=model, log=task.log(), columns=task.columns)
    shared = share_alike(source, task.vocabulary, rows=rows)
    return Vocabulary({name: task.vocabulary[name].keep(*of) for name, of in shared.items()})


def scores(
    method: str, task: Retraining, model: Callable[[], CtrModel], *, of: str = "values", **options: Any
) -> Scores:
    """Of fields and values, for one of them.

    Args:
        method: its name.
        task: the training log, and how models are trained.
        model: gives the trained model; asked by those alone that look at it.
        of: ``"values"`` or ``"fields"``.
        options: of the method.
    """
    columns = task.columns
    if method in MODEL_BASED:
        return score(method, Trained(model=model(), log=task.log(), columns=columns), **options)
    if method in GATES:
        return score(method, _search(task), **GATES[method], **options)
    batches = list(LogBatches(log=task.log(), columns=columns, seed=task.seed))
    if method == FEATURE_GRADIENTS:
        return fit(batches, columns.layout, FeatureGradientsSettings(**SEARCH[of], threads=usable_cores()))
    options |= {"seed": task.seed} if method == RANDOM else {}
    return score(method, Rows(batches=batches, layout=columns.layout), **options)


def _search(task: Retraining) -> Search:
    how = task.settings.training
    run = Run(task.settings.with_seed(task.seed, str(task.folder / "search")), models.build)
    exact = exact_tokens(task.log())
    return Search(
        build=lambda: run.build(exact),
        train=task.log(),
        valid=task.log("valid"),
        columns=task.columns,
        batch_size=how.batch_size,
        epochs=how.epochs,
        learning_rate=how.learning_rate,
        seed=task.seed,
    )

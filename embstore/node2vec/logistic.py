"""Logistic regression of several labels on the same vectors, by scikit-learn (the extra ``graphs``).

One-vs-rest, L2, C the inverse of the penalty's weight, the intercept not penalised. Newton's method: with some hundred
numbers a vector it needs few steps to the exact minimum, where the default solver stops short of it.

Suffixes: N rows, D numbers of a vector, K labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError

_STEPS = 200
_NEVER = 1e6  # the log-odds of a label that all rows have, of one that none has with a minus


@dataclass(frozen=True, kw_only=True, eq=False)
class Logistic:
    """What was fitted.

    Args:
        weights_KD, bias_K: float64.
    """

    weights_KD: NDArray[np.float64]
    bias_K: NDArray[np.float64]

    @classmethod
    def fit(cls, vectors_ND: NDArray[np.floating], labels_NK: NDArray[np.bool_], C: float = 1.0) -> Logistic:
        """One model for each label.

        Raises:
            ConfigError: scikit-learn is not installed.
        """
        linear_model = scikit_learn("linear_model")
        vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float64)
        weights_KD = np.zeros((labels_NK.shape[1], vectors_ND.shape[1]))
        bias_K = np.zeros(labels_NK.shape[1])
        with _one_thread():
            for k, label_N in enumerate(labels_NK.T):
                if label_N.all() or not label_N.any():
                    bias_K[k] = _NEVER if label_N.all() else -_NEVER
                    continue
                model = linear_model.LogisticRegression(C=C, solver="newton-cholesky", max_iter=_STEPS, tol=1e-9)
                with warnings.catch_warnings():
                    # Vectors near 1e-30 or 1e30 make a singular Hessian, from which scikit-learn goes on by L-BFGS.
                    warnings.simplefilter("ignore")
                    model.fit(vectors_ND, label_N)
                weights_KD[k], bias_K[k] = model.coef_[0], model.intercept_[0]
        return cls(weights_KD=weights_KD, bias_K=bias_K)

    def scores(self, vectors_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log-odds ``[N, K]``."""
        return np.asarray(vectors_ND.astype(np.float64) @ self.weights_KD.T + self.bias_K)


def scikit_learn(module: str) -> Any:
    """A module of it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        do = "pip install 'embstore[graphs]'"
        raise ConfigError("evaluation of vectors", expected="scikit-learn", found=str(error), do=do) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products are small here: threads that share them wait for each other, on a loaded machine for seconds."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        yield

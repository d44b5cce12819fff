"""Methods by name; each is a function of a source and its settings.

@register("mine", MineSettings)
def mine(source: Rows, settings: MineSettings) -> Scores: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from inspect import signature
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError, nearest
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of a log as columns: all that counting needs.

    Args:
        batches: a list, or what starts again when it is iterated over (``LogBatches``).
        layout: their columns.
    """

    batches: Iterable[SparseBatch]
    layout: Layout


@dataclass(frozen=True)
class _Method:
    run: Callable[[Any, Any], Scores]
    settings: type
    source: type


_METHODS: dict[str, _Method] = {}

Run = TypeVar("Run", bound=Callable[..., Scores])


def register(name: str, settings: type) -> Callable[[Run], Run]:
    """A decorator that makes a function of a source and ``settings`` callable as ``score(name, ...)``.

    Raises:
        ConfigError: the name is taken.
    """

    def decorate(run: Run) -> Run:
        if name in _METHODS:
            raise ConfigError(f"method {name!r} is registered twice", do="choose another name")
        source = get_type_hints(run)[next(iter(signature(run).parameters))]
        _METHODS[name] = _Method(run, settings, source)
        return run

    return decorate


def names(source: type | None = None) -> tuple[str, ...]:
    """The registered names, sorted; of those that take this source."""
    return tuple(sorted(name for name, method in _METHODS.items() if source in (None, method.source)))


def described(name: str) -> tuple[type, type]:
    """What a method takes: the class of its settings, and that of its source.

    Raises:
        ConfigError: an unknown name.
    """
    method = _method(name)
    return method.settings, method.source


def _method(name: str) -> _Method:
    if name not in _METHODS:
        raise ConfigError(f"unknown method {name!r}", do=nearest(name, _METHODS))
    return _METHODS[name]


def score(name: str, source: Any, **settings: Any) -> Scores:
    """Scores of all fields and columns, each a share of the best.

    Args:
        name: a registered name.
        source: what the method takes: ``Rows``, ``Trained`` or ``Search``.
        settings: the method's own, as its settings class says.

    Raises:
        ConfigError: an unknown name or setting (the nearest is named), a bad value, or another source.
        DataError: no rows, rows of other columns, or labels of one class.
    """
    method = _method(name)
    known = {field.name for field in fields(method.settings)}
    for key in settings:
        if key not in known:
            do = nearest(key, known) if known else "it has no settings"
            raise ConfigError(f"method {name!r}: unknown setting {key!r}", do=do)
    if not isinstance(source, method.source):
        found = type(source).__name__
        raise ConfigError(f"source of method {name!r}", expected=method.source.__name__, found=found)
    return method.run(source, method.settings(**settings))


def shares(layout: Layout, field_F: NDArray[np.floating], column_D: NDArray[np.floating] | None = None) -> Scores:
    """Scores of numbers of any sign: below 0 counts as 0, and each is divided by the largest of its kind.

    Args:
        layout: whose.
        field_F: of all fields.
        column_D: of all columns; without, each column's is its field's.
    """
    column_D = field_F[layout.field_of_column()] if column_D is None else column_D
    return Scores(layout=layout, log_field_F=_log_share(field_F), log_column_D=_log_share(column_D))


def _log_share(of: NDArray[np.floating]) -> NDArray[np.float64]:
    positive = np.maximum(of.astype(np.float64), 0.0)
    with np.errstate(divide="ignore"):
        return np.log(positive / (positive.max(initial=0.0) or 1.0))


def check_both_classes(rows: int, positives: int) -> None:
    """Refuse labels that no method can learn from.

    Raises:
        DataError: no rows, or labels of one class.
    """
    if not rows:
        raise DataError("rows to select features by", expected="at least one", found="none")
    if not 0 < positives < rows:
        found = f"{positives:,} of {rows:,} rows positive"
        raise DataError("labels to select features by", expected="rows of both classes", found=found)


def check_setting(name: str, value: float, *, least: float, above: bool = False) -> None:
    """Refuse a number below ``least`` (or at it, with ``above``), or none at all.

    Raises:
        ConfigError: naming the setting.
    """
    if not (least < value if above else least <= value) or not value < np.inf:
        expected = f"above {least:g}" if above else f"{least:g} or more"
        raise ConfigError(f"selection.{name}", expected=expected, found=str(value))

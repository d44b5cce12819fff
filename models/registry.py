"""CTR models by name, so that a run's YAML can choose one.

A model is an ``nn.Module`` made from its settings (a frozen dataclass, its ``settings_class``) and its inputs' widths:

    @register("mine")
    class Mine(nn.Module):
        settings_class = MineSettings

        def __init__(self, settings: MineSettings, *, dense_width: int, widths: Sequence[int]) -> None: ...

        def forward(self, dense_BD: Tensor, embedded_BW: Tensor) -> Tensor: ...  # logits_B
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from torch import nn

from embstore.errors import ConfigError, nearest

from .layers import check_count, checked_widths

_MODELS: dict[str, Any] = {}

Model = TypeVar("Model", bound=type[nn.Module])


def register(name: str) -> Callable[[Model], Model]:
    """A decorator that makes a model class buildable as ``name``.

    Raises:
        ConfigError: the name is taken.
    """

    def decorate(model: Model) -> Model:
        if name in _MODELS:
            raise ConfigError(f"model {name!r} is registered twice", do="choose another name")
        _MODELS[name] = model
        return model

    return decorate


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_MODELS))


def build(name: str, *, dense_width: int, widths: Sequence[int], **settings: Any) -> nn.Module:
    """A new model; its initial values come from torch's default generator, which the caller seeds.

    Args:
        name: a registered name.
        dense_width: dense columns; may be 0.
        widths: width of each embedded feature, in the order of the table's output; may be empty.
        settings: the model's own, as its ``settings_class`` says.

    Returns:
        A module with ``forward(dense_BD, embedded_BW) -> logits_B``, W being ``sum(widths)``.

    Raises:
        ConfigError: an unknown name or setting (the nearest is named), a bad value, or no input at all.
    """
    if name not in _MODELS:
        raise ConfigError(f"unknown model {name!r}", do=nearest(name, _MODELS))
    model = _MODELS[name]
    known = {field.name for field in fields(model.settings_class)}
    for key in settings:
        if key not in known:
            raise ConfigError(f"model {name!r}: unknown setting {key!r}", do=nearest(key, known))
    check_count("dense_width", dense_width, least=0)
    widths = checked_widths("widths", tuple(widths))
    if not dense_width and not widths:
        raise ConfigError(f"model {name!r}", expected="at least one feature or dense column", found="none")
    return model(model.settings_class(**settings), dense_width=dense_width, widths=widths)

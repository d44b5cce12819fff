"""From plain mappings (YAML) to frozen dataclasses, strictly: unknown keys and wrong types are errors."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from embstore.errors import ConfigError, nearest

T = TypeVar("T")


def parse(cls: type[T], data: Any, *, where: str = "config") -> T:
    """Build dataclass ``cls`` from a mapping, nested dataclasses and tuples of them included.

    Args:
        cls: a dataclass; its type hints say what each key takes.
        data: usually what ``yaml.safe_load`` gave.
        where: the path used in messages, e.g. ``"config.training"``.

    Raises:
        ConfigError: an unknown key (naming the nearest), a missing one, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(where, expected="a mapping of keys to values", found=_kind(data))
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}", do=nearest(str(key), known))
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where}: key {name!r} is missing", do=f"add {name}: <{_describe(hints[name])}>")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"config {path}", expected="a readable YAML file", found=str(error.strerror)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}", expected="valid YAML", found=str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise ConfigError(f"config {path}", expected="a mapping of keys to values", found=_kind(data))
    return data


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for arg in args:
            if arg is not type(None):
                try:
                    return _convert(arg, value, where)
                except ConfigError as error:
                    failure = error
        raise failure
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(where, expected=" or ".join(map(repr, args)), found=repr(value))
    if is_dataclass(hint):
        return value if isinstance(value, hint) else parse(hint, value, where=where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(where, expected="a list", found=_kind(value))
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(where, expected="a mapping", found=_kind(value))
        return dict(value)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 (no dot) as text.
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(where, expected=_describe(hint), found=_kind(value))


def _describe(hint: Any) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"

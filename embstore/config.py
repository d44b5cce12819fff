"""From plain mappings (YAML) to frozen dataclasses, strictly: unknown keys and wrong types are errors."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from embstore.errors import ConfigError, nearest

T = TypeVar("T")

MAX_DEPTH = 16  # levels of a YAML text
MAX_BITS = 256  # of a whole number; Python refuses to print those of more than 4,300 digits

_OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80
_shorten.maxlong = 40


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
            raise ConfigError(f"{where}: unknown key {_shown(key)}", do=nearest(_shown(key, quoted=False), known))
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where}: key {name!r} is missing", do=f"add {name}: <{_describe(hints[name])}>")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML (see ``parse_yaml``), or not a mapping.
    """
    data = parse_yaml(read_text(path, what="config"), where=f"config {path}")
    if not isinstance(data, dict):
        raise ConfigError(f"config {path}", expected="a mapping of keys to values", found=_kind(data))
    return data


def read_text(path: str | Path, *, what: str) -> str:
    """The text of a UTF-8 file; ``what`` it is (``"schema"``) goes into messages.

    Raises:
        ConfigError: no such file, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what} {path}", expected="a readable YAML file", found=str(error.strerror)) from error
    except ValueError as error:  # not UTF-8, or NUL in the path
        raise ConfigError(f"{what} {path}", expected="valid YAML", found=str(error)) from error


def parse_yaml(text: str, *, where: str) -> Any:
    """The plain values of a YAML text, whoever wrote it.

    Aliases are refused (aliases of aliases make a few lines mean a billion values), so are keys given twice, and so are
    more than 16 levels (PyYAML takes the square of the depth, minutes for 100 KB of brackets).

    Raises:
        ConfigError: not YAML, an alias, too many levels, or a scalar that is not what it looks like (2024-13-45).
    """
    try:
        _refuse_bombs(text, where)
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        # Scalars and tags PyYAML can't convert come as whatever its converters raise.
        raise ConfigError(where, expected="valid YAML", found=" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice; PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"key {_shown(key.value)} twice, line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _refuse_bombs(text: str, where: str) -> None:
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ConfigError(where, expected="YAML without aliases", found="an alias", do="write the value out")
        depth += isinstance(token, _OPENS) - isinstance(token, _CLOSES)
        if depth > MAX_DEPTH:
            raise ConfigError(where, expected=f"at most {MAX_DEPTH} levels", found="more")


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
        raise ConfigError(where, expected=" or ".join(map(repr, args)), found=_shown(value))
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
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1 as an integer and 1e-3 (no dot) as text
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isnan(number):
            return number
        raise ConfigError(where, expected=_describe(hint), found=_kind(value))
    if hint is int and isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ConfigError(where, expected="a whole number", found=f"one of {value.bit_length():,} bits")
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(where, expected=_describe(hint), found=_kind(value))


def _describe(hint: Any) -> str:
    """What a type hint takes, in words of YAML."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if is_dataclass(hint):
        needed = [f.name for f in fields(hint) if f.init and f.default is MISSING and f.default_factory is MISSING]
        return f"a mapping with {', '.join(needed)}" if needed else "a mapping of keys to values"
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    kinds = {tuple: "a list", dict: "a mapping", Mapping: "a mapping"}
    return plain.get(hint) or kinds.get(origin or hint) or "a value"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{_shown(value)} ({type(value).__name__})"


def _shown(value: Any, *, quoted: bool = True) -> str:
    """A value for a message, shortened."""
    try:
        return _shorten.repr(value) if quoted else str(value)[:80]
    except ValueError:  # an integer of thousands of digits
        return f"<{type(value).__name__}>"

"""JSON that is not trusted: no duplicate keys, no NaN, every value taken with its type and bounds."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from embstore.errors import CorruptVersionError

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80
_shorten.maxlong = 40


def write_json(value: Any) -> bytes:
    """Indented UTF-8 with a newline at the end; ``TypeError`` or ``ValueError`` where JSON has no such value."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def canonical_json(value: Any) -> bytes:
    """The one spelling used for digests: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """The object in ``data``.

    Args:
        where: the file, for messages.

    Raises:
        CorruptVersionError: not JSON, not an object, a key twice, or a number that is not finite.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise CorruptVersionError(where, expected="each key once", found=f"{shown(key)} twice")
            out[key] = value
        return out

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            refuse(digits)
        return number

    def refuse(constant: str) -> None:
        raise CorruptVersionError(where, expected="finite numbers", found=constant)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise CorruptVersionError(where, expected="JSON", found=str(error)) from error
    if not isinstance(value, dict):
        raise CorruptVersionError(where, expected="a JSON object", found=shown(value))
    return value


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    return _shorten.repr(value)


class Fields:
    """The keys of a JSON object, each taken with its type and bounds; keys nobody asks for are ignored.

    Every method raises ``CorruptVersionError`` naming the key, what was expected and what was found.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise CorruptVersionError(where, expected="a JSON object", found=shown(data))
        self._data, self._where = data, where

    def whole(self, key: str, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""

        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        return self._take(key, fits, f"an integer from {low} to {high}")

    def number(self, key: str) -> float:
        """A number of 0 or more."""

        def fits(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e300

        return float(self._take(key, fits, "a number of 0 or more"))

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        """Text that matches a pattern from end to end."""

        def fits(value: Any) -> bool:
            return isinstance(value, str) and pattern.fullmatch(value) is not None

        return self._take(key, fits, f"text like {pattern.pattern}")

    def text_or_null(self, key: str, pattern: re.Pattern[str]) -> str | None:
        """As ``text``, or null; the key must be there."""
        if key in self._data and self._data[key] is None:
            return None
        return self.text(key, pattern)

    def choice(self, key: str, known: Iterable[str]) -> str:
        """One of the texts in ``known``."""
        names = tuple(known)
        return self._take(key, lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")

    def flag(self, key: str) -> bool:
        """True or false."""
        return self._take(key, lambda value: isinstance(value, bool), "true or false")

    def entries(self, key: str) -> list[Any]:
        """A list, its entries unchecked."""
        return self._take(key, lambda value: isinstance(value, list), "a list")

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, its values unchecked."""
        return self._take(key, lambda value: isinstance(value, dict), "an object")

    def wholes(self, key: str, low: int, high: int, *, at_most: int) -> list[int]:
        """A list of integers of at most ``at_most`` entries."""
        values = self.entries(key)
        if len(values) > at_most:
            raise self.wrong(key, f"at most {at_most} entries", f"{len(values)}")
        inner = Fields(dict(enumerate(values)), f"{self._where}: {key}")
        return [inner.whole(i, low, high) for i in range(len(values))]  # type: ignore[arg-type]

    def texts(self, key: str, pattern: re.Pattern[str]) -> list[str]:
        """A list of texts that match a pattern from end to end."""
        values = self.entries(key)
        inner = Fields(dict(enumerate(values)), f"{self._where}: {key}")
        return [inner.text(i, pattern) for i in range(len(values))]  # type: ignore[arg-type]

    def wrong(self, key: str, expected: str, found: str) -> CorruptVersionError:
        """The error for a key whose value can't be."""
        return CorruptVersionError(f"{self._where}: {key}", expected=expected, found=found)

    def _take(self, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if key not in self._data:
            raise self.wrong(key, expected, "nothing")
        if not fits(self._data[key]):
            raise self.wrong(key, expected, shown(self._data[key]))
        return self._data[key]

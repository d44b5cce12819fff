"""Which Arrow types of a column mean the same values: to be read together, to be hashed alike."""

from __future__ import annotations

import re

import pyarrow as pa


def kind_of(kind: pa.DataType) -> str:
    """Types that encode alike have one name: all integers, all floats, all strings, lists of these."""
    if pa.types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list of {kind_of(kind.value_type)}"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    return str(kind)


def value_type(kind: pa.DataType) -> pa.DataType:
    """A type without its dictionary: what the values are."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(value_type(kind.value_type))
    return kind


def tokens_of(kind: pa.DataType) -> str:
    """Types whose values are hashed, or taken apart, alike have one name."""
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return f"time in {'UTC' if zone in (None, '+00:00', 'Etc/UTC') else zone}"
    return re.sub(r"(fixed_size_|large_)?binary(_view)?(\[\d+\])?", "string", kind_of(kind))


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The plainest type of the same values: what any reader of Parquet knows."""
    if isinstance(kind, pa.BaseExtensionType):
        return stored_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return kind

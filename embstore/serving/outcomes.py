"""What an error means to who asked: its name, and the codes of both protocols."""

from __future__ import annotations

from typing import NamedTuple

from embstore.errors import (
    AccessError,
    ConfigError,
    DataError,
    DeadlineError,
    EmbstoreError,
    LimitError,
    RequestError,
    SchemaError,
    ServingError,
    StoreError,
    UnavailableError,
    UnknownCallerError,
    UnknownModelError,
    VersionNotFoundError,
)


class Outcome(NamedTuple):
    """How a request ended.

    Args:
        name: for metrics and logs.
        http: status code.
        grpc: name of the ``grpc.StatusCode``.
    """

    name: str
    http: int
    grpc: str


OK = Outcome("ok", 200, "OK")
_INTERNAL = Outcome("internal", 500, "INTERNAL")
_OF: tuple[tuple[type[EmbstoreError], Outcome], ...] = (  # the first that fits
    (UnknownCallerError, Outcome("unknown_caller", 401, "UNAUTHENTICATED")),
    (AccessError, Outcome("refused", 403, "PERMISSION_DENIED")),
    (LimitError, Outcome("too_large", 413, "RESOURCE_EXHAUSTED")),
    (DeadlineError, Outcome("late", 504, "DEADLINE_EXCEEDED")),
    (VersionNotFoundError, Outcome("no_such_version", 404, "NOT_FOUND")),
    (UnavailableError, Outcome("unavailable", 503, "UNAVAILABLE")),
    (StoreError, Outcome("store", 503, "UNAVAILABLE")),
    (UnknownModelError, Outcome("no_such_model", 404, "NOT_FOUND")),
    (RequestError, Outcome("invalid", 400, "INVALID_ARGUMENT")),
    (SchemaError, Outcome("invalid", 400, "INVALID_ARGUMENT")),
    (DataError, Outcome("invalid", 400, "INVALID_ARGUMENT")),
    (ConfigError, Outcome("invalid", 400, "INVALID_ARGUMENT")),
)


def outcome_of(error: BaseException) -> Outcome:
    """What an error means; one that nobody raised on purpose is the server's own."""
    return next((outcome for kind, outcome in _OF if isinstance(error, kind)), _INTERNAL)


def error_of(status: int, message: str) -> EmbstoreError:
    """The error that a response with an HTTP status tells of; of errors with the same status the most usual."""
    return next((kind for kind, outcome in _OF if outcome.http == status), ServingError)(message)


def message_of(error: BaseException) -> str:
    """What to tell who asked: embstore's own words, and nothing of what went wrong inside."""
    return str(error) if isinstance(error, EmbstoreError) else "the server failed; its log says at what"

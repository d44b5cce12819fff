"""What goes wrong on purpose: one line on stderr, and an exit code."""

from __future__ import annotations

import re

import click

from embstore.cli.store import WHEN_DAMAGED
from embstore.errors import CorruptVersionError, EmbstoreError, Interrupted

ON_PURPOSE = (EmbstoreError, Interrupted, OSError)


def exit_code(error: Exception) -> int:
    """Of a command that ended so."""
    return 130 if isinstance(error, Interrupted) else 1


def say(error: Exception) -> None:
    """Print one of ``ON_PURPOSE``."""
    if isinstance(error, Interrupted):
        click.echo(str(error), err=True)
    elif isinstance(error, CorruptVersionError):
        _say(type(error).__name__, str(error) if error.do else f"{error}; {_remedy(error)}")
    elif isinstance(error, OSError):  # a full disk, a folder that can't be read: nothing a traceback would explain
        _say("OSError", f"{error.filename or 'file'}; found {error.strerror or error}")
    else:
        _say(type(error).__name__, str(error))


def _remedy(error: CorruptVersionError) -> str:
    if re.search(r"(^|/)log(/\d{12}\.json)?(?![^:])", error.what):
        return "restore it from a copy of the store: nothing can be read without the log"
    return WHEN_DAMAGED


def _say(kind: str, message: str) -> None:
    click.secho("error", fg="red", bold=True, nl=False, err=True)
    click.echo(f" {kind}: {message}", err=True)

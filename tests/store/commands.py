"""Commands as a user gives them, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from embstore.cli import cli


def invoke(*arguments: object) -> Result:
    """Its result; what it raises, but an exit, passes through."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def output(*arguments: object) -> str:
    """What it prints, having ended well."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout

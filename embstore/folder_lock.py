"""One process at a time in a job's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embstore.errors import CheckpointError
from embstore.run_folder import make_output


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold a folder, which is made when there is none; the kernel lets go of it when the process ends, however it does.

    Nothing is left in it. Where the file system knows no locks (some that are shared don't), nobody is kept out.

    Raises:
        CheckpointError: another process holds it.
        ConfigError: it can't be made or written to.
    """
    make_output(Path(folder))
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            do = "wait for it to end, or name another folder with --output"
            found, expected = "another process at work", "a folder that no other process works in"
            raise CheckpointError(str(folder), expected=expected, found=found, do=do) from error
        except OSError:
            pass
        yield
    finally:
        os.close(held)

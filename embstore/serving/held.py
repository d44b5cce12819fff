"""Bytes that requests and responses hold in memory, all together."""

from __future__ import annotations

from dataclasses import dataclass

from embstore.errors import UnavailableError


@dataclass(slots=True)
class Held:
    """How many there are, and how many there may be; of one asyncio loop."""

    limit: int
    held: int = 0

    def check(self, size: int, what: str) -> None:
        """Raise ``UnavailableError`` where there is no room for more."""
        if self.held + size > self.limit:
            found = f"{self.held:,} bytes of others"
            raise UnavailableError("server", expected=f"room for {what}", found=found, do="try again")

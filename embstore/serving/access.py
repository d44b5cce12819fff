"""Who may ask what: bearer tokens, one kind to read, one to administer."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from embstore.errors import AccessError, ConfigError, UnknownCallerError

_BEARER = "bearer "
_SHORTEST = 16


class Access:
    """The tokens of a server.

    Args:
        read: tokens that may look up; none: everybody may.
        admin: tokens that may promote, roll back and load, and read; none: nobody may.

    Raises:
        ConfigError: a token that is short enough to be guessed.
    """

    def __init__(self, read: Sequence[str] = (), admin: Sequence[str] = ()) -> None:
        for token in (*read, *admin):
            if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
                expected = f"{_SHORTEST} or more printable ASCII characters"
                raise ConfigError(
                    "token", expected=expected, found=f"{len(token)}", do="openssl rand -hex 32 makes one"
                )
        self._read, self._admin = [_digest(of) for of in read], [_digest(of) for of in admin]

    @property
    def guarded(self) -> bool:
        """Whether reading takes a token."""
        return bool(self._read)

    def check(self, authorization: str | None, *, admin: bool = False) -> None:
        """Let a request pass by its ``Authorization``.

        Raises:
            UnknownCallerError: no token, or none of the server's.
            AccessError: a token that may only read.
        """
        if not admin and not self._read:
            return
        if admin and not self._admin:
            do = "start it with an admin token"
            raise AccessError("administering this server", expected="an admin token", found="a server without", do=do)
        is_admin = self._is_admin(authorization)
        if admin and not is_admin:
            raise AccessError("request", expected="an admin token", found="one that may only read")

    def rights(self, authorization: str | None) -> dict[str, bool]:
        """What a request may, by its ``Authorization``, and what the server keeps for those who have a token.

        Returns:
            ``reads`` and ``administers``: whether the request may; ``guarded``: whether reading takes a token;
            ``administered``: whether there is a token to administer with.

        Raises:
            UnknownCallerError: a token, but none of the server's.
        """
        is_admin = authorization is not None and self._is_admin(authorization)
        return {
            "reads": not self._read or authorization is not None,
            "administers": is_admin,
            "guarded": self.guarded,
            "administered": bool(self._admin),
        }

    def _is_admin(self, authorization: str | None) -> bool:
        """Whether its token is one to administer with.

        Raises:
            UnknownCallerError: no token, or none of the server's.
        """
        text = authorization or ""
        if text[: len(_BEARER)].lower() != _BEARER:
            found = "another kind of Authorization" if text else "none"
            raise UnknownCallerError("request", expected="Authorization: Bearer TOKEN", found=found)
        token = _digest(text[len(_BEARER) :].strip())
        is_admin, is_read = _among(token, self._admin), _among(token, self._read)
        if not is_admin and not is_read:
            raise UnknownCallerError("request", expected="a token of this server", found="another")
        return is_admin


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _among(token: bytes, known: Sequence[bytes]) -> bool:
    """Compared with all, in the same time whatever they are."""
    return sum(hmac.compare_digest(token, of) for of in known) > 0

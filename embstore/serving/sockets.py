"""The ports of a server, taken once for all its processes.

    HTTP    one socket, inherited by all workers: what a killed one hadn't accepted, another does
    gRPC    its library takes no socket: each worker binds its own beside (SO_REUSEPORT) the one that holds the port

Nothing listens until a worker is ready, so that a connection before is refused, not left waiting.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from embstore.errors import ConfigError

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def take(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Bind a port on every address that a host name means.

    Args:
        port: 0 for any that is free.
        shared: this process's own may bind it, too.

    Raises:
        ConfigError: it is in use, or not this machine's.
    """
    taken: list[socket.socket] = []
    try:
        found = _addresses(host)
        for number, (family, address) in enumerate(found, 1):
            try:
                taken.append(_bound(family, (address, taken[0].getsockname()[1] if taken else port), shared))
            except OSError as error:  # localhost is ::1, too, even where there is no IPv6
                is_last = number == len(found)
                if error.errno not in _ABSENT or (is_last and not taken):
                    raise
    except OSError as error:
        for of in taken:
            of.close()
        what, do = f"{host} port {port}", ""
        if error.errno == errno.EADDRINUSE:
            do = "end what listens there, or choose another port (0: any that is free)"
        elif error.errno in _ABSENT:
            do = "name an address of this machine; 0.0.0.0 and :: mean all of them"
        raise ConfigError(what, expected="one to listen on", found=str(error.strerror), do=do) from error
    return taken


def addresses(sockets: Sequence[socket.socket]) -> list[str]:
    """Where they are bound, ``host:port`` each."""
    return [shown(*of.getsockname()[:2]) for of in sockets]


def shown(host: str, port: int) -> str:
    """As URLs have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _addresses(host: str) -> list[tuple[int, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bound(family: int, address: tuple[str, int], shared: bool) -> socket.socket:
    """What others left in TIME_WAIT doesn't matter when it is bound, but none may bind it after."""
    of = socket.socket(family, socket.SOCK_STREAM)
    try:
        of.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        of.bind(address)
        of.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if shared:  # only now: a port that another server shares out would have been bound, too
            of.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        of.close()
        raise
    return of


def inherited(descriptors: Sequence[int]) -> list[socket.socket]:
    """Those of a worker, ready to listen.

    Accepted sockets are as the one that listens: without SO_REUSEADDR, those in TIME_WAIT would keep the next server
    from the port.
    """
    sockets = [socket.socket(fileno=of) for of in descriptors]
    for of in sockets:
        of.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        of.setblocking(False)
    return sockets

"""Ports are taken once: not from others, and by others not."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from embstore.errors import ConfigError
from embstore.serving import sockets


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_is_one_servers(shared: bool) -> None:
    (first,) = sockets.take("127.0.0.1", 0, shared=shared)
    port = first.getsockname()[1]
    with closing(first):
        assert sockets.addresses([first]) == [f"127.0.0.1:{port}"]
        with pytest.raises(ConfigError, match=rf"port {port}.*in use"):
            sockets.take("127.0.0.1", port)
        with pytest.raises(ConfigError, match=rf"port {port}.*in use"):  # another server that shares out its own
            sockets.take("127.0.0.1", port, shared=True)
    for of in sockets.take("127.0.0.1", port):
        of.close()


def test_nothing_is_accepted_before_somebody_listens() -> None:
    (of,) = sockets.take("127.0.0.1", 0)
    with closing(of):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(of.getsockname(), timeout=60)
        of.listen()
        socket.create_connection(of.getsockname(), timeout=60).close()


def test_workers_bind_a_shared_port() -> None:
    (of,) = sockets.take("127.0.0.1", 0, shared=True)
    with closing(of):
        for _ in range(2):
            worker = socket.socket()
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with closing(worker):
                worker.bind(of.getsockname())


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match="address of this machine"):
        sockets.take("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        sockets.take("no-such-host.invalid", 0)


def test_a_name_is_all_of_its_addresses() -> None:
    taken = sockets.take("localhost", 0)
    assert len({of.getsockname()[1] for of in taken}) == 1
    assert "127.0.0.1" in {of.getsockname()[0] for of in taken}
    for of in taken:
        of.close()


def test_urls_have_brackets_around_ipv6() -> None:
    assert sockets.shown("::1", 80) == "[::1]:80"

"""Certificates that can be served with, and clients that are let in by theirs."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from datetime import datetime
from pathlib import Path

import grpc
import pytest
from certificates import DAY, NOW, Authority, private
from cryptography.hazmat.primitives.asymmetric import ec

from embstore.errors import ConfigError
from embstore.serving.settings import TlsFiles
from embstore.serving.tls import check_files, server_context, server_credentials


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_valid_one_says_when_it_ends_only_if_soon(authority: Authority) -> None:
    cert, key = authority.issue("server")
    assert check_files(TlsFiles(cert=cert, key=key, client_ca=authority.cert)) == []
    (warning,) = check_files(TlsFiles(cert=cert, key=key), NOW + 98 * DAY)
    assert (NOW + 99 * DAY).strftime("ends on %Y-%m-%d") in warning


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [
        (NOW - 9 * DAY, NOW - DAY, (NOW - DAY).strftime("expired on %Y-%m-%d")),
        (NOW + DAY, NOW + 9 * DAY, (NOW + DAY).strftime("valid from %Y-%m-%d")),
    ],
)
def test_one_that_is_not_valid_today_names_the_date(
    authority: Authority, begins: datetime, ends: datetime, message: str
) -> None:
    cert, key = authority.issue("server", begins, ends)
    with pytest.raises(ConfigError, match=message):
        check_files(TlsFiles(cert=cert, key=key))


def test_files_that_do_not_serve(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    _, another = authority.issue("another")
    locked, nothing = tmp_path / "locked.key", tmp_path / "nothing"
    locked.write_bytes(private(ec.generate_private_key(ec.SECP256R1()), b"password"))
    nothing.write_text("nothing")
    for files, message in (
        (TlsFiles(cert=cert, key=another), "found another"),
        (TlsFiles(cert=cert, key=str(locked)), "one with a password"),
        (TlsFiles(cert=cert, key=str(nothing)), "a private key in PEM"),
        (TlsFiles(cert=str(nothing), key=key), "PEM certificates"),
        (TlsFiles(cert=str(tmp_path / "absent"), key=key), "No such file"),
        (TlsFiles(cert=cert, key=key, client_ca=str(nothing)), "PEM certificates"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_files(files)


@pytest.mark.parametrize("client", ["valid", "expired", "stranger", "none"])
def test_clients_are_let_in_by_their_certificate(authority: Authority, tmp_path: Path, client: str) -> None:
    cert, key = authority.issue("server")
    files = TlsFiles(cert=cert, key=key, client_ca=authority.cert)
    authority.issue("valid")
    authority.issue("expired", NOW - 9 * DAY, NOW - DAY)
    (tmp_path / "elsewhere").mkdir()
    stranger = Authority(tmp_path / "elsewhere").issue("stranger")
    own = {"stranger": stranger, "none": None}.get(client, (f"{tmp_path}/{client}.crt", f"{tmp_path}/{client}.key"))
    assert _greeted_by_tls(files, authority.cert, own) == (client == "valid")
    assert asyncio.run(_greeted_by_grpc(files, authority.cert, own)) == (client == "valid")


def _greeted_by_tls(files: TlsFiles, authority: str, own: tuple[str, str] | None) -> bool:
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.create_default_context(cafile=authority)
    if own is not None:
        context.load_cert_chain(*own)

    def greet() -> None:
        accepted, _ = listener.accept()
        try:
            with server_context(files).wrap_socket(accepted, server_side=True) as of:
                of.sendall(b"hello")
        except OSError:
            accepted.close()

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as of,
        ):
            return of.recv(5) == b"hello"
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        thread.join()
        listener.close()


async def _greeted_by_grpc(files: TlsFiles, authority: str, own: tuple[str, str] | None) -> bool:
    async def greet(request: bytes, context: object) -> bytes:
        return b"hello"

    server = grpc.aio.server()
    handlers = {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Test", handlers)])
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
    await server.start()
    cert, key = (None, None) if own is None else (Path(own[0]).read_bytes(), Path(own[1]).read_bytes())
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes(), key, cert)
    try:
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            return bool(await channel.unary_unary("/Test/Greet")(b"", timeout=60) == b"hello")
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    finally:
        await server.stop(None)

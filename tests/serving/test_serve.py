"""``embstore serve``: what it refuses to start with, and that it goes on through kills, swaps and its end."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from certificates import DAY, NOW, Authority
from commands import invoke
from processes import Running, alive, ask, question, until
from shop import bundle

from embstore.errors import ConfigError, VersionNotFoundError
from embstore.serving.reader import Reader
from embstore.serving.settings import ServeSettings
from embstore.serving.supervisor import Supervisor
from embstore.store import Store

READ, ADMIN = "reads-and-nothing-else", "promotes-and-rolls-back"
USERS = ("ann", "bob", "zoë", "", "nobody")

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server and ends it."""
    started = []

    def begin(*arguments: object, **settings: Any) -> Running:
        started.append(Running(tmp_path, *arguments, **settings))
        return started[-1]

    yield begin
    for of in started:
        of.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of its own."""
    of = Store(tmp_path_factory.mktemp("serve") / "shop")
    of.promote(of.publish(bundle()).id)
    return of


@pytest.fixture(scope="module")
def four(shop: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of four workers."""
    of = Running(tmp_path_factory.mktemp("four"), shop.root, "--workers", 4, "--poll", 0.1)
    yield of
    of.close()


def expected(store: Store, version: str = "production", users: tuple[str, ...] = USERS) -> list[float]:
    vectors: np.ndarray[Any, Any] = Reader(store.open(version)).lookup("user", list(users)).vectors_BW
    return vectors.reshape(-1).tolist()  # type: ignore[no-any-return]


def failed(*arguments: object) -> str:
    with pytest.raises(ConfigError) as raised:
        invoke("serve", *arguments)
    return str(raised.value)


def test_what_it_does_not_start_with(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    tls = ("--tls-cert", cert, "--tls-key", key)
    tokens = tmp_path / "tokens"
    tokens.write_text(READ)
    assert "no TLS, no token" in failed("shop", "--host", "0.0.0.0")
    assert "no TLS" in failed("shop", "--host", "0.0.0.0", "--token-file", tokens)
    assert "no token to read" in failed("shop", "--host", "0.0.0.0", *tls, "--admin-token-file", tokens)
    assert "no --tls-key" in failed("shop", "--tls-cert", cert)
    assert "another" in failed("shop", "--tls-cert", cert, "--tls-key", authority.issue("another")[1])
    old = authority.issue("old", NOW - 9 * DAY, NOW - DAY)
    assert (NOW - DAY).strftime("expired on %Y-%m-%d") in failed("shop", "--tls-cert", old[0], "--tls-key", old[1])
    assert "neither" in failed("shop", "--http-port", "off", "--grpc-port", "off")


@pytest.mark.slow
def test_what_a_worker_cannot_start_for_is_said_once(shop: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "embstore.serving")
    settings = ServeSettings(store=str(shop.root), alias="prod", http_port=0, grpc_port=None, workers=2)
    with pytest.raises(VersionNotFoundError, match=r"'prod'.*known: .*production"):
        Supervisor(settings).run()
    assert not {"ending", "ended"} & {record.message for record in caplog.records}


@pytest.mark.slow
def test_it_says_where_it_is_and_answers(four: Running, shop: Store) -> None:
    assert f"shop: production is {shop.resolve('production')}" in four.output
    asked = four.output.split("\nask ")[1].strip()
    answer = subprocess.run(["bash", "-c", asked], capture_output=True, check=True, timeout=60).stdout
    assert b'"user.embedding"' in answer
    with closing(four.connect()) as connection:
        status, answered = ask(connection, question(*USERS))
    assert status == 200
    assert answered["outputs"][0]["data"] == pytest.approx(expected(shop), abs=0, rel=1e-6)
    with triton.InferenceServerClient(f"127.0.0.1:{four.grpc}") as client:
        assert client.is_server_ready()
        tensor = triton.InferInput("user", [len(USERS)], "BYTES")
        tensor.set_data_from_numpy(np.array(USERS, dtype=object))
        vectors = client.infer("shop", [tensor]).as_numpy("user.embedding")
    assert vectors.reshape(-1).tolist() == expected(shop)
    assert {line["worker"] for line in four.log if line["message"] == "ready"} == {0, 1, 2, 3}


@pytest.mark.slow
def test_workers_share_the_tables_memory(four: Running) -> None:
    assert "torch" not in Path(f"/proc/{four.process.pid}/maps").read_text()  # the supervisor needs none
    for _ in range(40):  # so that each has read it
        with closing(four.connect()) as connection:
            assert ask(connection, question(*USERS))[0] == 200
    for pid in four.workers:
        of_table = mapping(pid, "/table/")
        assert of_table["Size"] > 0
        assert of_table["Anonymous"] == of_table["Private_Dirty"] == 0  # the pages of the file, which all map


def mapping(pid: int, path: str) -> dict[str, int]:
    """KiB of all mappings of files whose path has that part."""
    found: dict[str, int] = {"Size": 0}
    within = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            within = path in line
        elif within and rest[-1] == "kB":
            found[key[:-1]] = found.get(key[:-1], 0) + int(rest[0])
    return found


@pytest.mark.slow
def test_all_workers_swap_when_a_version_is_promoted(four: Running, shop: Store) -> None:
    before = four.metric('embstore_swaps_total{alias="production"}')
    second = shop.publish(bundle(1))
    shop.promote(second.id)
    until(lambda: four.metric('embstore_swaps_total{alias="production"}') == before + 4)
    wanted = expected(shop, second.id)
    for _ in range(20):
        with closing(four.connect()) as connection:
            _, answered = ask(connection, question(*USERS))
        assert answered["model_version"] == second.id
        assert answered["outputs"][0]["data"] == pytest.approx(wanted, abs=0, rel=1e-6)


@pytest.mark.slow
def test_a_killed_worker_is_not_missed(four: Running, shop: Store) -> None:
    answers, wrong, stop = [0], [], threading.Event()
    body, wanted = question(*USERS), expected(shop)

    def retry() -> None:
        connection = four.connect()
        while not stop.is_set():
            try:
                status, answered = ask(connection, body)
            except (OSError, HTTPException):
                connection.close()
                continue
            if status != 200 or answered["outputs"][0]["data"] != pytest.approx(wanted, abs=0, rel=1e-6):
                wrong.append(answered)
            answers[0] += 1
        connection.close()

    thread = threading.Thread(target=retry)
    thread.start()
    until(lambda: answers[0] > 20)
    killed = four.workers[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: any(line["message"].startswith("worker died") for line in four.log))
    seen = answers[0]
    until(lambda: answers[0] > seen + 20)  # while there are three
    until(lambda: sum(line["message"] == "ready" for line in four.log) == 5)
    stop.set()
    thread.join()
    assert not wrong
    assert killed not in four.workers
    assert len(four.workers) == 4
    (died,) = (line for line in four.log if line["message"].startswith("worker died"))
    assert (died["worker_pid"], died["code"]) == (killed, -signal.SIGKILL)
    # What the dead one counted is not lost.
    assert four.metric('embstore_request_seconds_count{outcome="ok",protocol="http"}') >= answers[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end_loses_no_request_that_it_has_accepted(start: Start, shop: Store, number: int) -> None:
    running = start(shop.root, "--workers", 2)
    small, large = question(*USERS), question(*("ann",) * 100_000)
    answered, lost, stop = [0], [], threading.Event()

    def use(body: bytes) -> None:
        connection, kept, last = running.connect(), False, 0.0
        while not stop.is_set():
            try:
                if connection.sock is None:
                    kept = False
                    connection.connect()
                connection.request("POST", "/v2/models/shop/infer", body)
                response = connection.getresponse()
                data = response.read()
            except (OSError, HTTPException) as error:
                # One that was never accepted, or was idle for so long that the server closed it: to be asked again.
                if kept and time.monotonic() - last < 0.3:
                    lost.append(error)
                return
            if response.status != 200 or not data.startswith(b"{"):
                lost.append(response.status)
            answered[0] += 1
            kept, last = True, time.monotonic()
        connection.close()

    threads = [threading.Thread(target=use, args=(body,)) for body in (small, small, small, large)]
    for thread in threads:
        thread.start()
    until(lambda: answered[0] > 50)
    code = running.end(number)
    stop.set()
    for thread in threads:
        thread.join()
    assert code == 0
    assert not lost
    assert [line["message"] for line in running.log][-1] == "ended"
    assert not [line for line in running.log if line["level"] in ("warning", "error")]
    with pytest.raises(ConnectionRefusedError):
        running.get("/v2/health/live")


@pytest.mark.slow
def test_workers_end_with_their_supervisor(start: Start, shop: Store) -> None:
    running = start(shop.root, "--workers", 2)
    workers = running.workers
    assert len(workers) == 2
    running.process.kill()
    until(lambda: not any(alive(pid) for pid in workers))


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start: Start, shop: Store) -> None:
    running = start(shop.root, "--workers", 1)
    (worker,) = running.workers
    os.kill(worker, signal.SIGSTOP)  # one that would never end
    running.process.send_signal(signal.SIGTERM)
    until(lambda: any(line["message"] == "ending" for line in running.log))
    assert running.end() == 130
    assert not alive(worker)


@pytest.mark.slow
def test_an_open_address_takes_certificates_and_tokens(start: Start, shop: Store, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    own, old = authority.issue("client"), authority.issue("old", NOW - 9 * DAY, NOW - DAY)
    admin = tmp_path / "admin"
    admin.touch(0o600)
    admin.write_text(ADMIN)
    tls = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", authority.cert)
    of = start(
        *(shop.root, "--host", "0.0.0.0", "--workers", 1, *tls, "--admin-token-file", admin),
        environment={"EMBSTORE_TOKEN": READ},
    )
    assert "Bearer $EMBSTORE_TOKEN" in of.output
    for secret in (READ, ADMIN):
        assert secret.encode() not in Path(f"/proc/{of.workers[0]}/cmdline").read_bytes()
        assert secret not in of.output + of.errors

    def status(token: str | None, path: str = "/v2/models/shop/infer", client: tuple[str, str] = own) -> int:
        context = ssl.create_default_context(cafile=authority.cert)
        context.load_cert_chain(*client)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with closing(HTTPSConnection("127.0.0.1", of.http, context=context, timeout=60)) as connection:
            connection.request("POST", path, question("ann") if "infer" in path else b"{}", headers)
            return connection.getresponse().status

    assert [status(token) for token in (None, "a-guess-of-a-token", READ, ADMIN)] == [401, 401, 200, 200]
    assert [status(token, "/api/rollback") for token in (None, READ)] == [401, 403]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        status(READ, client=old)
    with closing(HTTPConnection("127.0.0.1", of.http, timeout=60)) as plain, pytest.raises((OSError, HTTPException)):
        ask(plain, question("ann"), Authorization=f"Bearer {READ}")
    assert [of_grpc(of.grpc, authority.cert, own, token) for token in (READ, "a-guess-of-a-token")] == [
        "OK",
        "UNAUTHENTICATED",
    ]
    assert of_grpc(of.grpc, authority.cert, old, READ) == "UNAVAILABLE"


def of_grpc(port: int, authority: str, client: tuple[str, str], token: str) -> str:
    """How a request for metadata ends."""
    cert, key, root = (Path(path).read_bytes() for path in (*client, authority))
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root, key, cert)) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        try:
            call(b"", timeout=60, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_a_port_that_is_taken_is_a_line_and_an_exit_code(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(READ)
    tokens.chmod(0o644)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "embstore", "serve", "shop", "--http-port", port, "--token-file", tokens]
        ended = subprocess.run([*map(str, command)], capture_output=True, timeout=300, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    warning, error = ended.stderr.splitlines()
    assert warning.startswith("warning: every user of this machine can read")
    assert error.startswith(f"error ConfigError: 127.0.0.1 port {port}")
    assert "in use" in error

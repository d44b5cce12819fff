"""Ray Serve's replicas and shards answer as a reader in process, whatever is promoted or killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from certificates import Authority
from click.testing import CliRunner
from shop import DIM, bundle

from embstore.cli.serve import serve as command
from embstore.errors import ConfigError, VersionNotFoundError
from embstore.models import build
from embstore.serving.grpc import Servicer
from embstore.serving.messages import SERVICE, message
from embstore.serving.protocol import Limits
from embstore.serving.reader import Reader
from embstore.serving.server import Server
from embstore.serving.settings import ServeSettings
from embstore.serving.versions import Versions
from embstore.store import Store, format

pytest.importorskip("ray.serve", exc_type=ImportError)

from embstore.pipelines.rpc import SERVICES, Methods
from embstore.pipelines.serve import RaySettings, serve_store

READ, ADMIN = "read-" * 4, "admin-" * 4
REPLICAS = 2
RECORDS: dict[str, Any] = {
    "user": ["ann", "bob", "zoë"],
    "item": [1, -7, 2**62],
    "tags": [["a", "b"], [], ["a", "c", "x"]],
    "country": ["de", "fr", "never seen"],
    "hour": [0, 23, 5],
    "price": [1.5, 0.0, -3.0],
    "age": [33.0, 41.0, 17.0],
}
OUTPUTS = ("embedding", "score", "user.embedding", "tags.embedding", "country.status", "tags.status")
SECONDS = 120.0  # until what was killed is back


@dataclass(frozen=True)
class Served:
    """A server on the cluster, and what it must answer."""

    store: Store
    settings: ServeSettings
    shards: int
    expected: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by version

    def publish(self, seed: int, encoding: str = "float32") -> str:
        version = self.store.publish(bundle(seed), encoding=encoding)
        reader = Reader(version, build)
        reader.load()
        self.expected[version.id] = {
            "embedding": reader.embed(RECORDS).tobytes(),
            "score": reader.score(RECORDS).tobytes(),
            **{
                f"{name}.{what}": found.tobytes()
                for name in ("user", "tags", "country")
                for what, found in zip(("embedding", "status"), reader.lookup(name, RECORDS[name]), strict=True)
            },
        }
        return version.id

    def client(self, kind: Any = over_http) -> Any:
        port = self.settings.http_port if kind is over_http else self.settings.grpc_port
        return kind.InferenceServerClient(f"127.0.0.1:{port}")

    def check(self, client: Any, kind: Any = over_http, **options: Any) -> str:
        """Ask, compare every output with the version that answered, and say which that was."""
        outputs = [kind.InferRequestedOutput(name) for name in OUTPUTS]
        answer = client.infer(
            self.settings.name, _inputs(kind), outputs=outputs, **{"headers": _headers(READ), **options}
        )
        response = answer.get_response()
        version: str = response["model_version"] if kind is over_http else response.model_version
        for name in OUTPUTS:
            assert answer.as_numpy(name).tobytes() == self.expected[version][name], (version, name)
        return version

    def processes(self, deployment: str) -> list[int]:
        """Its replicas' process ids, by the titles that Ray gives them."""
        title = f"ray::ServeReplica:{self.settings.name}:{deployment}"
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    line = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if line.decode("utf-8", "replace").startswith(title):
                    found.append(int(folder.name))
        return found


def _headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _inputs(kind: Any) -> list[Any]:
    lists = RECORDS["tags"]
    arrays: dict[str, Any] = {
        name: np.array(RECORDS[name], dtype=of)
        for name, of in (("user", object), ("item", np.int64), ("country", object), ("hour", np.int64))
    }
    arrays["tags"] = np.array([value for values in lists for value in values], dtype=object)
    arrays["tags.lengths"] = np.array([len(values) for values in lists], dtype=np.int64)
    arrays |= {name: np.array(RECORDS[name], dtype=np.float32) for name in ("price", "age")}
    types = {"O": "BYTES", "i": "INT64", "f": "FP32"}
    out = []
    for name, array in arrays.items():
        tensor = kind.InferInput(name, list(array.shape), types[array.dtype.kind])
        tensor.set_data_from_numpy(array)
        out.append(tensor)
    return out


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module", params=[1, 2], ids=["mapped", "sharded"])
def served(request: Any, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "BUCKET_BYTES", 4096)
        folder = tmp_path_factory.mktemp("ray-serve") / f"shop{request.param}"
        settings = ServeSettings(
            store=str(folder),
            http_port=_port(),
            grpc_port=_port(),
            read_tokens=(READ,),
            admin_tokens=(ADMIN,),
            limits=Limits(body_bytes=100_000),
            poll_seconds=0.2,
        )
        of = Served(Store(folder), settings, request.param)
        of.store.promote(of.publish(0))
        spread = RaySettings(replicas=REPLICAS, shards=request.param, cpus=0.1, grpc=True)
        with serve_store(settings, spread):
            yield of


@pytest.mark.slow
@pytest.mark.parametrize("kind", [over_http, over_grpc], ids=["http", "grpc"])
def test_stock_clients_get_what_the_reader_gives(served: Served, kind: Any) -> None:
    assert len(served.processes("front")) == REPLICAS
    assert len(served.processes("shard-")) == (served.shards if served.shards > 1 else 0)
    client = served.client(kind)
    assert client.is_server_live(headers=_headers(READ))
    assert client.is_server_ready(headers=_headers(READ))
    assert client.is_model_ready(served.settings.name, headers=_headers(READ))
    assert {served.check(client, kind) for _ in range(20)} == {served.store.resolve("production")}


@pytest.mark.slow
def test_who_may_ask_what_and_how_much(served: Served) -> None:
    client, name = served.client(), served.settings.name
    long = over_http.InferInput("user", [1], "BYTES")
    long.set_data_from_numpy(np.array(["x" * 50_000] * 3, dtype=object)[:1])
    many = over_http.InferInput("user", [3], "BYTES")
    many.set_data_from_numpy(np.array(["x" * 50_000] * 3, dtype=object))
    other = over_http.InferInput("usr", [1], "INT64")
    other.set_data_from_numpy(np.array([1]))
    for inputs, options, status in (
        (_inputs(over_http), {"headers": {}}, "401"),
        (_inputs(over_http), {"headers": _headers("wrong-" * 4)}, "401"),
        (_inputs(over_http), {"model_version": "never"}, "404"),
        ([other], {}, "400"),
        ([many], {}, "413"),
    ):
        with pytest.raises(over_http.InferenceServerException) as raised:
            client.infer(name, inputs, **{"headers": _headers(READ), **options})
        assert raised.value.status() == status, raised.value
    assert client.infer(name, [long], headers=_headers(READ)).as_numpy("user.embedding").shape == (1, 2 * DIM)
    with pytest.raises(over_http.InferenceServerException) as raised:
        client.load_model(name, headers=_headers(READ))
    assert raised.value.status() == "403"


@pytest.mark.slow
def test_who_may_ask_what_and_how_much_over_grpc(served: Served) -> None:
    client, name = served.client(over_grpc), served.settings.name
    many = over_grpc.InferInput("user", [3], "BYTES")
    many.set_data_from_numpy(np.array(["x" * 50_000] * 3, dtype=object))
    other = over_grpc.InferInput("usr", [1], "INT64")
    other.set_data_from_numpy(np.array([1]))
    for inputs, options, status in (
        (_inputs(over_grpc), {"headers": {}}, "UNAUTHENTICATED"),
        (_inputs(over_grpc), {"model_version": "never"}, "NOT_FOUND"),
        ([other], {}, "INVALID_ARGUMENT"),
        ([many], {}, "RESOURCE_EXHAUSTED"),
        (_inputs(over_grpc), {"client_timeout": 1e-4}, "DEADLINE_EXCEEDED"),
    ):
        with pytest.raises(over_grpc.InferenceServerException) as raised:
            client.infer(name, inputs, **{"headers": _headers(READ), **options})
        assert raised.value.status() == f"StatusCode.{status}", raised.value
    with pytest.raises(over_grpc.InferenceServerException, match="admin token"):
        client.load_model(name, headers=_headers(READ))
    with grpc.insecure_channel(f"127.0.0.1:{served.settings.grpc_port}") as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"  # SERVING
    served.check(client, over_grpc, headers={**_headers(READ), "application": name})


class _Asking:
    """Requests over both protocols, each compared with the version it is of; what is refused is kept, not raised."""

    def __init__(self, served: Served) -> None:
        self.served, self._stop = served, threading.Event()
        self.answers: list[str] = []
        self.refused: list[Exception] = []
        self.wrong: list[AssertionError] = []
        self._threads = [threading.Thread(target=self._ask, args=(kind,)) for kind in (over_http, over_grpc)]

    def __enter__(self) -> _Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, kind: Any) -> None:
        client = self.served.client(kind)
        while not self._stop.is_set():
            try:
                self.answers.append(self.served.check(client, kind))
            except AssertionError as error:
                self.wrong.append(error)
            except Exception as error:
                self.refused.append(error)
                client = self.served.client(kind)
            time.sleep(0.01)

    def until_answered(self, version: str, times: int = 40) -> None:
        """Wait until so many answers one after the other were of a version."""
        until = time.monotonic() + SECONDS
        while set(self.answers[-times:]) != {version} or len(self.answers) < times:
            assert time.monotonic() < until, (self.answers[-times:], self.refused[-1:])
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_what_is_promoted_is_answered_from_and_no_request_fails(served: Served, encoding: str) -> None:
    with _Asking(served) as asking:
        newer = served.publish(len(served.expected) + 10, encoding)
        served.store.promote(newer)
        asking.until_answered(newer)
    assert not asking.wrong
    assert not asking.refused


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["front", "shard-0"])
def test_what_is_killed_comes_back_and_no_answer_is_wrong(served: Served, deployment: str) -> None:
    if deployment != "front" and served.shards == 1:
        pytest.skip("no shards")
    before = served.processes(deployment)
    version = served.store.resolve("production")
    with _Asking(served) as asking:
        asking.until_answered(version)
        os.kill(before[0], signal.SIGKILL)
        until = time.monotonic() + SECONDS
        while not (
            set(served.processes(deployment)) - set(before) and len(served.processes(deployment)) == len(before)
        ):
            assert time.monotonic() < until, "it did not come back"
            time.sleep(0.1)
        asking.answers.clear()
        asking.until_answered(version)
        newer = served.publish(len(served.expected) + 10)
        served.store.promote(newer)
        asking.until_answered(newer)
    assert not asking.wrong
    assert before[0] not in served.processes(deployment)


@pytest.mark.slow
def test_one_server_a_cluster(served: Served) -> None:
    settings = ServeSettings(store=str(served.store.root), http_port=_port())
    with pytest.raises(ConfigError, match="none on this cluster yet"), serve_store(settings, RaySettings(cpus=0.1)):
        pass


@pytest.mark.slow
def test_a_cluster_that_is_too_small(cluster: str, store: Store) -> None:
    settings = ServeSettings(store=str(store.root), http_port=_port())
    with pytest.raises(ConfigError, match="expected 9 CPUs for 9"), serve_store(settings, RaySettings(replicas=9)):
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    of = Store(tmp_path / "shop")
    of.promote(of.publish(bundle()).id)
    return of


def test_settings_that_ray_cannot_do(store: Store) -> None:
    def refused(match: str, spread: RaySettings | None = None, **settings: Any) -> None:
        whole = ServeSettings(**{"store": str(store.root), "http_port": 8000, **settings})
        with pytest.raises(ConfigError, match=match), serve_store(whole, spread):
            pass

    refused("http port on Ray; expected a number", http_port=0)
    refused("found off", http_port=None)
    refused("gRPC on Ray; expected a token to read", RaySettings(grpc=True))
    refused("grpc port on Ray", RaySettings(grpc=True), grpc_port=None, read_tokens=(READ,))
    refused(r"shards; expected at most \d+, as the table", RaySettings(shards=1000))
    refused("no Ray cluster at 127.0.0.1:1", RaySettings(address="127.0.0.1:1"))
    nothing = ServeSettings(store=str(store.root), alias="never")
    with pytest.raises(VersionNotFoundError), serve_store(nothing):
        pass


def test_the_proxies_know_the_methods_that_replicas_answer(store: Store) -> None:
    server = Server(name="shop", versions=Versions(store))
    handlers = Servicer(server).handlers()
    server.close()
    for service, names in SERVICES.items():
        for name in names:
            details = Details(f"/{service}/{name}")
            assert any(of.service(details) is not None for of in handlers), name
            assert callable(getattr(Methods, name))
    assert set(SERVICES[SERVICE]) < set(dir(over_grpc.service_pb2_grpc.GRPCInferenceServiceServicer))


class Given:
    """A call's context as Ray Serve gives it: what is said at its end, and who asks."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.mark.parametrize("rows", [1, 10_000], ids=["small", "large"])
def test_replicas_answer_messages_as_the_single_host(store: Store, rows: int) -> None:
    server = Server(name="shop", versions=Versions(store))
    servicer, methods = Servicer(server), Methods()
    methods.handlers, methods.body_bytes = servicer.handlers(), 1 << 20

    def ask(model: str) -> tuple[bytes, Given]:
        request = message("ModelInferRequest")(model_name=model)
        request.inputs.add(name="item", datatype="INT64", shape=[rows]).contents.int64_contents.extend(range(rows))
        given = Given()
        return asyncio.run(methods.ModelInfer(request.SerializeToString(), given)).data, given  # type: ignore[attr-defined]

    try:
        data, given = ask("shop")
        assert (given.code, given.details) == (None, "")
        answer = message("ModelInferResponse").FromString(data)
        expected = server.versions.get().lookup("item", range(rows))
        assert answer.raw_output_contents[0] == expected.vectors_BW.tobytes()
        assert servicer._leaving.held == servicer._arrived.held == 0
        data, given = ask("sohp")
        assert (data, given.code) == (b"", grpc.StatusCode.NOT_FOUND)
        assert "shop" in given.details
    finally:
        server.close()


class Details(NamedTuple):
    """What gRPC tells of a call."""

    method: str
    invocation_metadata: Any = ()


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"replicas": (3, 2)}, {"shards": 0}, {"cpus": 0.0}])
def test_spreads_that_there_are_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RaySettings(**wrong)


def test_without_ray(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = ServeSettings(store=str(store.root))
    with pytest.raises(ConfigError, match=r"pip install 'embstore\[ray,serve\]'"), serve_store(settings):
        pass


def test_options_that_do_not_go_together(store: Store) -> None:
    for options, match in (
        (["--replicas", "2"], "replicas of a Ray cluster; add --ray"),
        (["--ray", "--workers", "2"], "replicas in place of workers"),
    ):
        result = CliRunner().invoke(command, [str(store.root), *options])
        assert isinstance(result.exception, ConfigError)
        assert match in str(result.exception)
    result = CliRunner().invoke(command, [str(store.root), "--ray", "--replicas", "2-3"])
    assert "neither a number nor MIN:MAX" in result.output


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[2], *filter(None, sys.path)]))
    return environment


def test_more_than_this_machine_can_hold(store: Store) -> None:
    line = [sys.executable, "-m", "embstore", "serve", str(store.root), "--ray", "--replicas", "1:10000"]
    done = subprocess.run(line, env=_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "replicas and shards on this machine; expected at most" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_host_needs_no_ray() -> None:
    program = (
        "import sys, embstore.cli.serve, embstore.serving.worker, embstore.serving.supervisor; print(*sys.modules)"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=_environment(), capture_output=True, text=True, timeout=300, check=True)
    assert {"ray", "torchrec", "embstore.pipelines"}.isdisjoint(done.stdout.split())
    assert "embstore.serving.http" in done.stdout.split()


@pytest.mark.slow
def test_the_command(tmp_path: Path, store: Store) -> None:
    """With TLS, and as many replicas as load asks for."""
    authority, port = Authority(tmp_path), _port()
    cert, key = authority.issue("server")
    (tmp_path / "token").write_text(READ)
    options = ["--ray", "--replicas", "1:2", "--replica-cpus", "0.5", "--http-port", str(port), "--tls-cert", cert]
    options += ["--tls-key", key, "--token-file", str(tmp_path / "token")]
    line = [sys.executable, "-m", "embstore", "serve", str(store.root), *options]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            line, env=_environment(), stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"shop: ready on Ray\n", (tmp_path / "errors").read_text()
        assert process.stdout.readline() == b"HTTP  https://127.0.0.1:%d on each node\n" % port
        context = ssl.create_default_context(cafile=authority.cert)
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/v2/health/ready", context=context) as answer:
            assert answer.status == 200
        asked = urllib.request.Request(f"https://127.0.0.1:{port}/v2/models/shop", headers=_headers(READ))
        with urllib.request.urlopen(asked, context=context) as answer:
            assert json.load(answer)["versions"] == [store.resolve("production")]
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: Ray's processes must not get it
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "Traceback" not in (tmp_path / "errors").read_text()

"""The Open Inference Protocol over HTTP, and the store's own verbs, as an ASGI application.

    GET  /v2                                            the server
    GET  /v2/health/live, /v2/health/ready              whether it answers; 200 or 400
    GET  /v2/models/NAME[/versions/V]                   inputs and outputs
    GET  /v2/models/NAME[/versions/V]/ready
    POST /v2/models/NAME[/versions/V]/infer             vectors, statuses, scores (bodies.py, service.py)
    POST /v2/repository/index                           the store's versions, and which are loaded
    POST /v2/repository/models/NAME/load                admin; a version to load and keep: parameters.version
    GET  /metrics                                       Prometheus
    GET  /api/versions, /api/aliases, /api/features, /api/latency
    GET  /api/access                                    what the request's token, or anybody, may
    POST /api/promote {"ref", "alias"}, /api/rollback {"alias"}      admin

V is an alias, a tag, a version id or a unique prefix of one. Who may ask is ``Access``'s to say; where nobody needs a
token the ``Host`` must be this machine, so that no web page can ask by a name of its own that leads here.

Source: Open Inference Protocol v2, https://github.com/kserve/open-inference-protocol, with Triton's extensions for
binary tensor data and for the model repository.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from time import monotonic, perf_counter
from typing import Any, NamedTuple

import orjson

from embstore.errors import AccessError, DeadlineError, RequestError, UnknownCallerError
from embstore.serving.asgi import (
    BINARY,
    LARGE_BYTES,
    Answer,
    Call,
    File,
    HttpError,
    LeftError,
    Receive,
    Send,
    respond,
    shown,
    text,
)
from embstore.serving.bodies import decode, encode, parse
from embstore.serving.held import Held
from embstore.serving.protocol import InferRequest, InferResponse, Raw
from embstore.serving.reader import Reader
from embstore.serving.server import Server, features
from embstore.serving.values import LENGTHS, MISSING
from embstore.store.listing import listing
from embstore.store.state import PRODUCTION

_HELD_BODIES = 4  # bodies of the largest size that may be arriving at a time
_HELD_RESPONSES = 4  # likewise, responses that clients read
_VERB_BYTES = 65_536  # of a body without tensors
_OF_A_ROW = ("table", "delta", "bytes", "damaged")  # beside what the log says of a version
_ONCE = (b"authorization", b"content-length", b"host", b"inference-header-content-length")
_LOOPBACK = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)


Encoded = tuple[list[Raw], int | None]


class _Route(NamedTuple):
    method: str
    answer: Callable[[Call], Awaitable[Answer]]
    who: str = "reader"  # "anyone", "reader" or "admin"


class App:
    """The application; of one asyncio loop, as its server.

    Args:
        server: what answers.
        files: by path, for a page to look at.
    """

    def __init__(self, server: Server, files: Mapping[str, File] | None = None) -> None:
        self.server, self.files = server, dict(files or {})
        self._arriving = Held(_HELD_BODIES * server.limits.body_bytes)
        self._leaving = Held(_HELD_RESPONSES * server.limits.output_bytes)
        self._fixed = {
            "/v2": _Route("GET", self._about),
            "/v2/health/live": _Route("GET", self._live, "anyone"),
            "/v2/health/ready": _Route("GET", self._ready, "anyone"),
            "/v2/repository/index": _Route("POST", self._index),
            "/metrics": _Route("GET", self._metrics),
            "/api/versions": _Route("GET", self._versions),
            "/api/aliases": _Route("GET", self._aliases),
            "/api/features": _Route("GET", self._features),
            "/api/latency": _Route("GET", self._latency),
            "/api/access": _Route("GET", self._access, "anyone"),
            "/api/promote": _Route("POST", self._promote, "admin"),
            "/api/rollback": _Route("POST", self._rollback, "admin"),
        }
        self._of_model = {
            "": _Route("GET", self._model),
            "ready": _Route("GET", self._ready),
            "infer": _Route("POST", self._infer),
        }
        self._of_repository = {
            "load": _Route("POST", self._load, "admin"),
            "unload": _Route("POST", self._unload, "admin"),
        }
        self._infer_path = f"/v2/models/{server.name}/infer"

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        came = perf_counter()
        headers = scope["headers"]
        call = Call(scope["path"], dict(headers), receive, came, came)
        try:
            if len(call.headers) < len(headers):
                _check_once(headers)
            answer = await self._answered(call, scope["method"])
        except LeftError:
            return
        except Exception as error:
            answer = self._failed(call, error)
        finally:
            self._arriving.held -= call.held
        is_last = call.unread or self.server.ending
        size = sum(len(part) for part in answer.body)
        if size <= LARGE_BYTES:
            await respond(answer, send, is_last=is_last)
            return
        self._leaving.held += size
        try:
            await respond(answer, send, is_last=is_last)
        finally:
            self._leaving.held -= size

    async def _answered(self, call: Call, method: str) -> Answer:
        if call.path in self.files:
            self._check_host(call)
            return _file(self.files[call.path], method)
        route = self._route(call)
        if route.who != "anyone":
            self.server.access.check(text(call.headers.get(b"authorization")), admin=route.who == "admin")
            self._check_host(call)
        if method != route.method and (method, route.method) != ("HEAD", "GET"):
            raise _wrong_method(call.path, method, route.method)
        return await route.answer(call)

    def _route(self, call: Call) -> _Route:
        path = call.path
        if path == self._infer_path:
            return self._of_model["infer"]
        route = self._fixed.get(path)
        if route is not None:
            return route
        parts = path.split("/")[1:]
        if parts[:2] == ["v2", "models"] and len(parts) in range(3, 7):
            self.server.check_model(parts[2])
            rest = parts[3:]
            if rest[:1] == ["versions"] and len(rest) > 1 and rest[1]:
                call.version, rest = rest[1], rest[2:]
            route = self._of_model.get("/".join(rest))
        elif parts[:3] == ["v2", "repository", "models"] and len(parts) == 5:
            self.server.check_model(parts[3])
            route = self._of_repository.get(parts[4])
        if route is None:
            raise HttpError(404, f"path {shown(path)}", expected="one of this server", found="none")
        return route

    def _check_host(self, call: Call) -> None:
        if self.server.access.guarded or _LOOPBACK.fullmatch(call.headers.get(b"host", b"")):
            return
        found = shown(text(call.headers.get(b"host")) or "none")
        raise AccessError("request", expected="a Host of this machine, as nobody needs a token", found=found)

    def _failed(self, call: Call, error: Exception) -> Answer:
        outcome = self.server.ended("http", call.started, error, path=call.path[:200])
        headers: Sequence[tuple[bytes, bytes]] = ()
        status = outcome.http
        if isinstance(error, HttpError):
            status, headers = error.status, error.headers
        elif isinstance(error, UnknownCallerError):
            headers = ((b"www-authenticate", b"Bearer"),)
        return Answer([orjson.dumps({"error": self.server.message(error)})], status=status, headers=headers)

    # The protocol

    async def _about(self, call: Call) -> Answer:
        return _json(
            {"name": "embstore", "version": _version(), "extensions": ["binary_tensor_data", "model_repository"]}
        )

    async def _live(self, call: Call) -> Answer:
        return Answer([b"{}"])

    async def _ready(self, call: Call) -> Answer:
        if self.server.is_ready(call.version):
            return Answer([b"{}"])
        return Answer([orjson.dumps({"error": "not ready"})], status=400)  # the protocol: 200 or 4xx

    async def _model(self, call: Call) -> Answer:
        return _json(self.server.metadata(await self._reader(call)))

    async def _infer(self, call: Call) -> Answer:
        server, limits = self.server, self.server.limits
        length = _header_length(call)
        body = await call.body(limits.body_bytes, self._arriving)

        def request() -> InferRequest:
            waited = call.started - call.came
            return decode(body, length, model=server.name, version=call.version, limits=limits, waited=waited)

        decoded = request() if len(body) <= LARGE_BYTES else await server.run(request)
        parts, json_bytes = await self._in_time(decoded)
        self._leaving.check(sum(len(part) for part in parts), "a response")
        values = sum(of.count() for of in decoded.inputs if not of.name.endswith((LENGTHS, MISSING)))
        server.ended("http", call.started, None, values=values)
        if json_bytes is None:
            return Answer(parts)
        return Answer(parts, BINARY, ((b"inference-header-content-length", b"%d" % json_bytes),))

    async def _in_time(self, request: InferRequest) -> Encoded:
        def encoded(response: InferResponse) -> Encoded:
            return encode(response, request, self.server.limits)

        if request.deadline is None:
            return await self.server.infer(request, encoded)
        try:
            async with asyncio.timeout_at(request.deadline - monotonic() + asyncio.get_running_loop().time()):
                return await self.server.infer(request, encoded)
        except TimeoutError as error:
            expected, do = "an answer in time", "give it more time"
            raise DeadlineError("request", expected=expected, found="none yet", do=do) from error

    # The repository

    async def _index(self, call: Call) -> Answer:
        wanted = await self._verb(call, "ready")
        server = self.server

        def index() -> list[dict[str, str]]:
            loaded, meant = set(server.versions.loaded().values()), server.versions.store.aliases()
            failed = {
                meant[alias]: server.told(why) for alias, why in server.versions.failures().items() if alias in meant
            }
            found = []
            for info in server.versions.store.versions():
                state, reason = (
                    ("READY", "") if info.id in loaded else ("UNAVAILABLE", failed.get(info.id, "not loaded"))
                )
                found.append({"name": server.name, "version": info.id, "state": state, "reason": reason})
            return found

        entries = await server.run(index)
        return _json(
            [entry for entry in entries if entry["state"] == "READY"] if wanted.get("ready") is True else entries
        )

    async def _load(self, call: Call) -> Answer:
        parameters = (await self._verb(call, "parameters")).get("parameters") or {}
        ref = parameters.get("version", "") if type(parameters) is dict and parameters.keys() <= {"version"} else None
        if type(ref) is not str:
            raise RequestError("load: parameters", expected='at most {"version": an alias, tag or id}', found="others")
        call.version = ref
        reader = await self._reader(call)
        return _json({"name": self.server.name, "version": reader.version.id})

    async def _unload(self, call: Call) -> Answer:
        do = "promote another version, or load one: what was asked for last stays"
        raise RequestError("unload: versions that aliases mean stay loaded", do=do)

    # The store's verbs

    async def _metrics(self, call: Call) -> Answer:
        return Answer([await self.server.run(self.server.metrics.text)], b"text/plain; version=0.0.4; charset=utf-8")

    async def _versions(self, call: Call) -> Answer:
        store = self.server.versions.store

        def versions() -> list[dict[str, Any]]:
            loaded = set(self.server.versions.loaded().values())
            rows = {row["version"]: {key: row[key] for key in _OF_A_ROW} for row in listing(store)}
            for row in rows.values():
                row["damaged"] = row["damaged"] and self.server.told(row["damaged"])
            infos = [info for info in store.versions() if info.id in rows]
            return [{**asdict(info), **rows[info.id], "loaded": info.id in loaded} for info in infos]

        return _json({"name": self.server.name, "versions": await self.server.run(versions)})

    async def _aliases(self, call: Call) -> Answer:
        versions = self.server.versions
        aliases = await self.server.run(versions.store.aliases)
        return _json({"name": self.server.name, "alias": versions.following.alias, "aliases": aliases})

    async def _access(self, call: Call) -> Answer:
        self._check_host(call)
        return _json(self.server.access.rights(text(call.headers.get(b"authorization"))))

    async def _features(self, call: Call) -> Answer:
        reader = await self._reader(call)
        dense = [column.name for column in reader.version.schema.dense]
        about = {"features": features(reader), "dense": dense, "scores": reader.scores}
        return _json({"name": self.server.name, "version": reader.version.id, **about})

    async def _latency(self, call: Call) -> Answer:
        recent = self.server.metrics.recent
        return _json({"requests": recent.count, "seconds": recent.quantiles()})

    async def _promote(self, call: Call) -> Answer:
        asked = await self._verb(call, "ref", "alias")
        ref, alias = _named(asked, "ref"), _named(asked, "alias", PRODUCTION)
        return _json(asdict(await self.server.run(lambda: self.server.promote(ref, alias))))

    async def _rollback(self, call: Call) -> Answer:
        alias = _named(await self._verb(call, "alias"), "alias", PRODUCTION)
        return _json(asdict(await self.server.run(lambda: self.server.rollback(alias))))

    # What they ask of a request

    async def _reader(self, call: Call) -> Reader:
        versions = self.server.versions
        reader: Reader | None = versions.ready(call.version)
        return reader if reader is not None else await self.server.run(lambda: versions.get(call.version))

    async def _verb(self, call: Call, *known: str) -> dict[str, Any]:
        """A body without tensors."""
        body = await call.body(_VERB_BYTES, self._arriving)
        asked = parse(body, self.server.limits) if body else {}
        if type(asked) is not dict or not asked.keys() <= set(known):
            found = shown(", ".join(asked)) if type(asked) is dict else type(asked).__name__
            raise RequestError("request", expected=f"a JSON object of at most {', '.join(known)}", found=found)
        return asked


def _check_once(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Of two that say who, what host or how long, nobody knows which another server on the way has heeded."""
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            raise RequestError(f"header {name.decode()}", expected="one", found=f"{names.count(name):,}")


def _json(value: Any) -> Answer:
    return Answer([orjson.dumps(value)])


def _file(file: File, method: str) -> Answer:
    if method not in ("GET", "HEAD"):
        raise _wrong_method("a file", method, "GET")
    return Answer([file.body], file.kind.encode(), ((b"x-content-type-options", b"nosniff"), *file.headers))


def _header_length(call: Call) -> int | None:
    length = call.headers.get(b"inference-header-content-length")
    if length is None:
        return None
    if not length.isdigit() or len(length) > 18:
        raise RequestError("Inference-Header-Content-Length", expected="bytes", found=shown(text(length)))
    return int(length)


def _named(asked: Mapping[str, Any], key: str, default: str | None = None) -> str:
    name = asked.get(key, default)
    if type(name) is not str or not name:
        raise RequestError(key, expected="text", found=shown(name))
    return name


def _wrong_method(path: str, found: str, expected: str) -> HttpError:
    allow = ((b"allow", expected.encode()),)
    return HttpError(405, f"method of {shown(path)}", expected=expected, found=shown(found), headers=allow)


def _version() -> str:
    try:
        return version("embstore")
    except PackageNotFoundError:  # run from its sources
        return "unknown"

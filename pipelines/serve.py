"""Serving on a Ray cluster: the single host's server in as many replicas as are asked for, started again when they die.

    embstore serve store --ray --replicas 4 --shards 2

    Ray's proxies (one a node) ──> replicas (front.py) ──┬─> the version, mapped: replicas of a host share its memory
                                                         └─> shards (shards.py), where no host holds the table alone

The store must lie where all nodes find it by the same name: a bucket, or a folder that they share. Each replica follows
the alias by itself, so for as long as a swap takes some answer from the version before; every answer names its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from embstore.continuous import place_of
from embstore.errors import ConfigError
from embstore.serving.settings import ServeSettings
from embstore.store import Store

from .cluster import cluster

_AT_ONCE = 256  # requests of a replica; others wait in the proxies,
_WAITING = 4096  # no more than so many in each, then they are told to come again
_KEEP_ALIVE_SECONDS = 75
_HEALTH_SECONDS, _GRACE_SECONDS = 2.0, 10.0
_MOST_SECONDS = 60.0  # of a request, of which most may have been spent waiting for a replica
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
_CONTROLLER, _NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
_METHODS = "embstore.pipelines.rpc.add_to_server"


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """How a server is spread over a cluster.

    Args:
        replicas: that answer; least and most of them, where load decides.
        shards: that the table is shared out to by row range; 1: each replica maps all of it.
        shard_replicas: of each shard; of one alone that dies, requests fail until it is back.
        cpus: of a replica or shard; of a core, what others leave.
        grpc: whether gRPC is answered, too. Ray's proxies listen for it at every address of their nodes, without TLS:
            it takes a token to read, and a network that is trusted.
        address: of the cluster. By default the one this process is connected to, else that of ``RAY_ADDRESS``, else one
            started here, with as many cores as are needed.
    """

    replicas: int | tuple[int, int] = 1
    shards: int = 1
    shard_replicas: int = 1
    cpus: float = 1.0
    grpc: bool = False
    address: str | None = None

    def __post_init__(self) -> None:
        least, most = self.least_most
        if not 1 <= least <= most:
            found = f"{least}" if least == most else f"{least} to {most}"
            raise ConfigError("replicas", expected="1 or more, or MIN:MAX", found=found)
        for name in ("shards", "shard_replicas"):
            if getattr(self, name) < 1:
                raise ConfigError(name, expected="1 or more", found=str(getattr(self, name)))
        if not 0 < self.cpus < float("inf"):
            raise ConfigError("cpus", expected="more than 0", found=str(self.cpus))

    @property
    def least_most(self) -> tuple[int, int]:
        """Replicas."""
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas, self.replicas)

    @property
    def processes(self) -> tuple[int, int]:
        """Replicas and shards, at least and at most."""
        holding = self.shards * self.shard_replicas if self.shards > 1 else 0
        least, most = self.least_most
        return least + holding, most + holding


@contextmanager
def serve_store(settings: ServeSettings, ray_settings: RaySettings | None = None) -> Iterator[None]:
    """Answer by replicas on a Ray cluster while the context lasts; when it begins, they are ready.

    Args:
        settings: as of the single host, but for ``workers``, which replicas are in place of.
        ray_settings: how they are spread.

    Raises:
        ConfigError: settings that Ray's proxies can't do, Ray isn't installed, the cluster can't be reached, is too
            small or already serves.
        VersionNotFoundError: the alias means nothing.
        StoreError: the store can't be read.
    """
    spread = ray_settings or RaySettings()
    _check_ports(settings, spread)
    if settings.search and spread.shards > 1:
        do = "leave --shards or --search away"
        raise ConfigError("neighbours", expected="a table that is whole", found=f"{spread.shards} shards", do=do)
    settings = replace(settings, store=str(place_of(settings.store)))
    _check_version(settings, spread)
    ray, serve = _load_ray()
    _, most = spread.processes
    cpus, what = ceil(most * spread.cpus), "replicas and shards"
    with cluster(ray, spread.address, cpus=cpus, processes=most, what=what, error=ConfigError):
        _check_room(ray, spread)
        _check_free(ray)
        try:
            serve.start(proxy_location="EveryNode", http_options=_http(settings), grpc_options=_grpc(settings, spread))
            serve.run(_application(serve, settings, spread), name=settings.name, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            serve.shutdown()
            found = str(error).strip().split("\n")[0]
            do = "see `serve status`, and the logs of Ray"
            raise ConfigError("Ray Serve", expected="replicas that start", found=found, do=do) from error
        try:
            yield
        finally:
            serve.shutdown()


def _application(serve: Any, settings: ServeSettings, spread: RaySettings) -> Any:
    from .front import Front, Part, asgi

    least, most = spread.least_most
    of: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": spread.cpus},
        "max_ongoing_requests": _AT_ONCE,
        "max_queued_requests": _WAITING,
        "health_check_period_s": _HEALTH_SECONDS,
        "graceful_shutdown_timeout_s": _GRACE_SECONDS,
        "logging_config": _LOGGING,
    }
    shards = [
        serve.deployment(Part, name=f"shard-{shard}", num_replicas=spread.shard_replicas, **of).bind(
            settings, shard, spread.shards
        )
        for shard in range(spread.shards)
        if spread.shards > 1
    ]
    if least == most:
        of["num_replicas"] = least
    else:
        of["autoscaling_config"] = {"min_replicas": least, "max_replicas": most}
    return serve.deployment(serve.ingress(asgi)(Front), name="front", **of).bind(settings, *shards)


def _http(settings: ServeSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.http_port,
        "request_timeout_s": _MOST_SECONDS,
        "keep_alive_timeout_s": _KEEP_ALIVE_SECONDS,
    }
    if settings.tls is not None:
        options |= {"ssl_certfile": settings.tls.cert, "ssl_keyfile": settings.tls.key}
        if settings.tls.client_ca is not None:
            options["ssl_ca_certs"] = settings.tls.client_ca
    return options


def _grpc(settings: ServeSettings, spread: RaySettings) -> dict[str, Any] | None:
    if not spread.grpc:
        return None
    return {
        "port": settings.grpc_port,
        "grpc_servicer_functions": [_METHODS],
        "request_timeout_s": _MOST_SECONDS,
        "enable_reflection": False,
    }


def _check_ports(settings: ServeSettings, spread: RaySettings) -> None:
    if not settings.http_port:
        found = "off" if settings.http_port is None else "any that is free"
        raise ConfigError("http port on Ray", expected="a number, the same on all nodes", found=found)
    if not spread.grpc:
        return
    if not settings.grpc_port:
        found = "off" if settings.grpc_port is None else "any that is free"
        raise ConfigError("grpc port on Ray", expected="a number, the same on all nodes", found=found)
    if not settings.read_tokens:
        do = "give it one, or leave gRPC out"
        expected = "a token to read, as Ray's proxies listen at every address of their nodes"
        raise ConfigError("gRPC on Ray", expected=expected, found="none", do=do)


def _check_version(settings: ServeSettings, spread: RaySettings) -> None:
    """Here, before anything is started, whose reasons to fail would be found in logs of the cluster."""
    store = Store(settings.store)
    buckets = store.open(settings.alias).table.layout.buckets
    if spread.shards > buckets:
        expected = f"at most {buckets}, as the table has so many files"
        raise ConfigError("shards", expected=expected, found=str(spread.shards))


def _load_ray() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        found, do = str(error).split("\n")[0], "pip install 'embstore[ray,serve]'"
        raise ConfigError("Ray can't be loaded", expected="ray with its serve extra", found=found, do=do) from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return ray, serve


def _check_room(ray: Any, spread: RaySettings) -> None:
    """Replicas that can never be placed would be waited for without end."""
    there, (processes, _) = ray.cluster_resources().get("CPU", 0), spread.processes
    needed = processes * spread.cpus
    if there < needed:
        raise ConfigError(
            "the Ray cluster is too small",
            expected=f"{needed:g} CPUs for {processes} replicas and shards",
            found=f"{there:g}",
            do="ask for fewer, for less of a CPU each, or add nodes",
        )


def _check_free(ray: Any) -> None:
    """Proxies that are there already listen where they were told to, and are not told again."""
    try:
        ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
    except ValueError:
        return
    do = "`serve shutdown` ends it; or take a cluster of its own"
    raise ConfigError("Ray Serve", expected="none on this cluster yet", found="one that runs", do=do)

"""``embstore serve --ray``: the same server on a Ray cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embstore.pipelines.serve import RaySettings
    from embstore.serving.settings import ServeSettings

_POLL_SECONDS = 0.2


class Replicas(click.ParamType):
    """``N``, or ``MIN:MAX``."""

    name = "replicas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """A number, or two."""
        least, colon, most = str(value).partition(":")
        if not least.isdigit() or (colon and not most.isdigit()):
            self.fail(f"{value!r} is neither a number nor MIN:MAX", param, ctx)
        return (int(least), int(most)) if colon else int(least)


_OPTIONS = (
    click.option("--ray", is_flag=True, help="On a Ray cluster, by replicas in place of workers."),
    click.option("--replicas", type=Replicas(), metavar="N|MIN:MAX", help="With --ray.  [default: 1]"),
    click.option("--shards", type=int, help="With --ray: processes that the table is shared out to.  [default: none]"),
    click.option("--shard-replicas", type=int, help="With --shards: of each, so that one may die.  [default: 1]"),
    click.option("--replica-cpus", type=float, help="With --ray: of a replica or shard.  [default: 1]"),
    click.option(
        "--ray-grpc",
        is_flag=True,
        help="With --ray: gRPC, too, which Ray's proxies listen for at every address of their nodes, without TLS.",
    ),
    click.option("--ray-address", help="Of the cluster.  [default: RAY_ADDRESS, else one started here]"),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take(given: dict[str, Any]) -> RaySettings | None:
    """Take what the options gave out of it; ``None``: not on Ray.

    Raises:
        ConfigError: options without ``--ray``, or not with it.
    """
    from embstore.errors import ConfigError

    on_ray = given.pop("ray")
    settings = {
        "replicas": given.pop("replicas"),
        "shards": given.pop("shards"),
        "shard_replicas": given.pop("shard_replicas"),
        "cpus": given.pop("replica_cpus"),
        "grpc": given.pop("ray_grpc") or None,
        "address": given.pop("ray_address"),
    }
    chosen = {name: value for name, value in settings.items() if value is not None}
    if not on_ray:
        if chosen:
            raise ConfigError(f"{', '.join(sorted(chosen))} of a Ray cluster", do="add --ray, or leave them out")
        return None
    if given.get("workers") is not None:
        raise ConfigError("--workers on Ray", expected="replicas in place of workers", do="--replicas N")
    from embstore.pipelines.serve import RaySettings

    return RaySettings(**chosen)


def run(settings: ServeSettings, spread: RaySettings, *, as_json: bool) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from embstore.interruption import Interruption
    from embstore.pipelines.serve import serve_store

    asked = Interruption()
    with asked.watched(), serve_store(settings, spread):
        scheme = "http" if settings.tls is None else "https"
        if as_json:
            ports = {"http": settings.http_port, "grpc": settings.grpc_port if spread.grpc else None}
            click.echo(json.dumps({"name": settings.name, "alias": settings.alias, "ports": ports}))
        else:
            click.echo(f"{settings.name}: ready on Ray")
            click.echo(f"HTTP  {scheme}://{settings.host}:{settings.http_port} on each node")
            if spread.grpc:
                click.echo(f"gRPC  port {settings.grpc_port} on each node, at all its addresses")
        while not asked.asked():
            time.sleep(_POLL_SECONDS)

"""``embstore serve``."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from embstore.cli import serve_ray

if TYPE_CHECKING:
    from embstore.serving.settings import ServeSettings, TlsFiles
    from embstore.serving.supervisor import Listening

_NEEDED = ("uvicorn", "httptools", "uvloop", "orjson", "grpc", "google.protobuf", "prometheus_client", "cryptography")
_VALUES, _BODY_BYTES = 1_000_000, 64 << 20  # embstore.serving.protocol.Limits', without numpy


class Port(click.ParamType):
    """A port, 0 for any, or ``off``."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """``off`` is ``None``."""
        if value is None or value == "off":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor off", param, ctx)


@click.command(
    epilog="""\b
Examples:
  embstore serve store
  embstore serve s3://bucket/models/shop --workers 4 --host 0.0.0.0 \\
      --tls-cert tls.crt --tls-key tls.key --token-file tokens

Tokens also come from EMBSTORE_TOKEN and EMBSTORE_ADMIN_TOKEN; `openssl rand -hex 32` makes one.
SIGTERM and Ctrl-C end it when what has begun is answered; a second one at once.
"""
)
@click.argument("store")
@click.option("--alias", default="production", show_default=True, help="What requests get that name no version.")
@click.option("--name", default="", help="The model's, as requests name it.  [default: the store's last folder]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but the loopback takes TLS and a token.")
@click.option("--http-port", type=Port(), default="8000", show_default=True, help="0: any that is free; off: none.")
@click.option("--grpc-port", type=Port(), default="8001", show_default=True, help="0: any that is free; off: none.")
@click.option("--workers", type=int, help="Processes that answer.  [default: one a core, at most 4]")
@click.option("--tls-cert", metavar="FILE", help="The server's certificate, PEM.")
@click.option("--tls-key", metavar="FILE", help="Its private key.")
@click.option("--tls-client-ca", metavar="FILE", help="Who asks needs a certificate of one of these authorities, too.")
@click.option("--token-file", metavar="FILE", help="Tokens that may look up, one a line.")
@click.option("--admin-token-file", metavar="FILE", help="Tokens that may promote and roll back, too.")
@click.option("--max-values", default=_VALUES, show_default=True, help="Of one request.")
@click.option("--max-body", default=_BODY_BYTES, show_default=True, help="Bytes of one request.")
@click.option("--poll", default=1.0, show_default=True, help="Seconds between two looks at the alias.")
@click.option(
    "--notice",
    default=0.5,
    show_default=True,
    help="Seconds, at its end, from not ready until nothing new is accepted: longer than a balancer takes to notice.",
)
@click.option(
    "--search", multiple=True, metavar="FEATURE", help="Answer nearest neighbours among its values; or all. Repeatable."
)
@click.option(
    "--metric", type=click.Choice(("cosine", "dot", "l2")), default="cosine", show_default=True, help="Of neighbours."
)
@click.option("--no-score", is_flag=True, help="Vectors only: the network is not built.")
@click.option(
    "--log-level", type=click.Choice(("debug", "info", "warning", "error")), default="info", show_default=True
)
@serve_ray.options
@click.option("--json", "as_json", is_flag=True, help="Print where it listens as a line of JSON.")
def serve(max_values: int, max_body: int, as_json: bool, **options: Any) -> None:
    """Answer lookups and scores of STORE (a folder, or a URI) by the Open Inference Protocol, HTTP and gRPC.

    Requests that name no version get the one that --alias means, and the next one from when it is promoted; none fails
    in between. The log goes to stderr, as JSON unless that is a terminal.
    """
    _check_installed()
    from embstore.serving import logs
    from embstore.serving.protocol import Limits
    from embstore.serving.supervisor import Supervisor

    limits = Limits(values=max_values, body_bytes=max_body)
    spread = serve_ray.take(options)
    settings = _settings(limits, **options)
    if spread is not None:
        serve_ray.run(settings, spread, as_json=as_json)
        return
    logs.configure(settings.log_level)

    def ready(listening: Listening) -> None:
        if as_json:
            about = {"name": settings.name, "alias": settings.alias, "version": listening.version}
            click.echo(json.dumps({**about, "http": listening.http, "grpc": listening.grpc}))
        else:
            _show(settings, listening, options["token_file"])

    Supervisor(settings, ready).run()


def _settings(
    limits: Any,
    *,
    workers: int | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    token_file: str | None,
    admin_token_file: str | None,
    poll: float,
    notice: float,
    no_score: bool,
    **same: Any,
) -> ServeSettings:
    from embstore.serving.settings import ADMIN_TOKEN, TOKEN, ServeSettings, tokens_of
    from embstore.threads import usable_cores

    settings = ServeSettings(
        workers=min(usable_cores(), 4) if workers is None else workers,
        tls=_tls_files(tls_cert, tls_key, tls_client_ca),
        read_tokens=tokens_of(token_file, TOKEN),
        admin_tokens=tokens_of(admin_token_file, ADMIN_TOKEN),
        limits=limits,
        poll_seconds=poll,
        notice_seconds=notice,
        scores=not no_score,
        **same,
    )
    _check_files(settings.tls, token_file, admin_token_file)
    return settings


def _tls_files(cert: str | None, key: str | None, client_ca: str | None) -> TlsFiles | None:
    from embstore.errors import ConfigError
    from embstore.serving.settings import TlsFiles

    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        found = "no --tls-cert" if cert is None else "no --tls-key"
        raise ConfigError("TLS", expected="a certificate and its key", found=found, do="name both")
    return TlsFiles(cert=cert, key=key, client_ca=client_ca)


def _check_files(tls: TlsFiles | None, *secret: str | None) -> None:
    from embstore.serving.settings import readable_by_all
    from embstore.serving.tls import check_files

    for warning in [] if tls is None else check_files(tls):
        _warn(warning)
    for path in (*secret, None if tls is None else tls.key):
        if path is not None and readable_by_all(path):
            _warn(f"every user of this machine can read {path}: chmod o-r {path}")


def _warn(text: str) -> None:
    """As ``console.warn``, which imports torch: the process in front of the others stays small without."""
    click.echo(f"warning: {text}", err=True)


def _check_installed() -> None:
    from embstore.errors import ConfigError

    absent = [name for name in _NEEDED if find_spec(name.partition(".")[0]) is None]
    if absent:
        do = "pip install 'embstore[serve]'"
        raise ConfigError("embstore serve", expected=", ".join(_NEEDED), found=f"no {', '.join(absent)}", do=do)


def _show(settings: ServeSettings, listening: Listening, token_file: str | None) -> None:
    """Where it listens, and how to ask."""
    scheme = "http" if settings.tls is None else "https"
    click.echo(f"{settings.name}: {settings.alias} is {listening.version}")
    for name, addresses, before in (("HTTP", listening.http, f"{scheme}://"), ("gRPC", listening.grpc, "")):
        for address in addresses:
            click.echo(f"{name}  {before}{address}")
    if listening.http:
        click.echo(f"ask   {_curl(settings, listening, scheme, token_file)}")


def _curl(settings: ServeSettings, listening: Listening, scheme: str, token_file: str | None) -> str:
    from shlex import quote
    from urllib.parse import quote as in_url

    value: Any = "a" if listening.input["datatype"] == "BYTES" else 1
    tensor = {"name": listening.input["name"], "datatype": listening.input["datatype"], "shape": [1], "data": [value]}
    address = listening.http[0].replace("0.0.0.0", "localhost").replace("[::]", "localhost")
    words = ["curl", "-s", f"{scheme}://{address}/v2/models/{in_url(settings.name, safe='')}/infer"]
    if settings.tls is not None:
        words += [
            "--cacert",
            settings.tls.cert,
            *(["--cert", "CERT", "--key", "KEY"] if settings.tls.client_ca else []),
        ]
    asked = " ".join(quote(word) for word in words)
    if settings.read_tokens:
        token = "$EMBSTORE_TOKEN" if token_file is None else f"$(head -1 {quote(token_file)})"
        asked += f' -H "Authorization: Bearer {token}"'
    return f"{asked} -d {quote(json.dumps({'inputs': [tensor]}))}"

"""What a server may be started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embstore.errors import ConfigError
from embstore.serving.protocol import Limits
from embstore.serving.settings import ServeSettings, TlsFiles, is_loopback, readable_by_all, tokens_of

SECRET = "0123456789abcdef0123456789abcdef"
TLS = TlsFiles(cert="cert", key="key")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_loopback_takes_nothing(host: str) -> None:
    assert is_loopback(host)
    ServeSettings(store="shop", host=host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_any_other_address_takes_tls_and_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="no TLS, no token to read"):
        ServeSettings(store="shop", host=host)
    with pytest.raises(ConfigError, match="no TLS"):
        ServeSettings(store="shop", host=host, read_tokens=(SECRET,))
    with pytest.raises(ConfigError, match="no token to read"):
        ServeSettings(store="shop", host=host, tls=TLS, admin_tokens=(SECRET,))
    ServeSettings(store="shop", host=host, tls=TLS, read_tokens=(SECRET,))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"http_port": 70_000}, "http port"),
        ({"http_port": None, "grpc_port": None}, "neither"),
        ({"http_port": 81, "grpc_port": 81}, "81 for HTTP and for gRPC"),
        ({"workers": 0}, "workers"),
        ({"poll_seconds": 0.0}, "poll"),
        ({"poll_seconds": float("nan")}, "poll"),
        ({"notice_seconds": -1.0}, "notice"),
        ({"limits": Limits(values=0)}, "values"),
        ({"log_level": "inf"}, "did you mean 'info'"),
        ({"name": "a/b"}, "name of the model"),
        ({"read_tokens": ("short",)}, "16 or more"),
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeSettings(**{"store": "shop", **wrong})


def test_the_model_is_named_as_the_store() -> None:
    assert ServeSettings(store="stores/shop/").name == "shop"
    assert ServeSettings(store="s3://bucket/models/shop/").name == "shop"
    assert ServeSettings(store="shop", name="other").name == "other"
    with pytest.raises(ConfigError, match="--name"):
        ServeSettings(store="/")


def test_they_travel_whole_and_show_no_token() -> None:
    settings = ServeSettings(store="shop", tls=TLS, read_tokens=(SECRET,), admin_tokens=(SECRET[::-1],))
    assert ServeSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert SECRET not in repr(settings)
    assert SECRET[::-1] not in repr(settings)


def test_tokens_come_from_files_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# of the ranker\n{SECRET}\n\n  {SECRET[::-1]}  \n")
    assert tokens_of(str(path), "T", {"T": "third"}) == ("third", SECRET, SECRET[::-1])
    assert tokens_of(None, "T", {}) == tokens_of(None, "T", {"T": ""}) == ()
    path.chmod(0o640)
    assert not readable_by_all(str(path))
    path.chmod(0o644)
    assert readable_by_all(str(path))


@pytest.mark.parametrize("text", [b"", b"# none yet\n", b"\xff\xfe"])
def test_a_token_file_without_tokens_lets_nobody_in(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "tokens").write_bytes(text)
    with pytest.raises(ConfigError, match="token file"):
        tokens_of(str(tmp_path / "tokens"), "T", {})
    with pytest.raises(ConfigError, match="No such file"):
        tokens_of(str(tmp_path / "absent"), "T", {})

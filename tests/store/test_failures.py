"""What can't be reached or is no store's name is said at once, with its cause."""

from __future__ import annotations

import errno
import http.server
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from disk import Call, intercepted
from obstore.exceptions import BaseError, GenericError
from publisher import small_bundle

from embstore.errors import CorruptVersionError, StoreError
from embstore.store import Store, format
from embstore.store.failures import request_failed
from embstore.store.objects import ObjectPlace

SETTING = "embstore.store.objects"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    monkeypatch.setattr(f"{SETTING}._SILENCE", timedelta(milliseconds=200))
    monkeypatch.setattr(f"{SETTING}._RETRIES", timedelta(milliseconds=300))


class Slow(http.server.BaseHTTPRequestHandler):
    """Takes what it is sent, after a while."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.6)
        self.send_response(200)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def slow_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_can_not_be_reached_is_said(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="404"):
        Store("s3://no-such-bucket/store").versions()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="EMBSTORE_CACHE"):
        Store(s3, cache=tmp_path / "file").publish(small_bundle())
    Store(s3).publish(small_bundle())
    with pytest.raises(StoreError, match="EMBSTORE_CACHE"):
        Store(s3, cache=tmp_path / "file").open()


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("https://host/store", "https://"),
        ("ftp://host/x", "ftp://"),
        ("s3://", "no bucket"),
        ("s3:///x/", "no bucket"),
        ("s3://bkt/../x", "a prefix with"),
        ("s3://bkt/%2E%2e/x", "a prefix with"),
        ("s3://bkt/./x/", "a prefix with"),
        ("gs://bkt//x", "a prefix with"),
        ("s3://bkt/x?versionId=1", "a ? or #"),
        ("s3://bkt/x#1", "a ? or #"),
        ("s3:/bkt/x", "s3:/"),
        ("file:/srv/x", "file:/"),
        ("file://host/store", "a folder of host"),
        ("s3://[bkt/x", "Invalid"),
    ],
)
def test_a_uri_that_means_no_store_is_shown_as_it_was_given(uri: str, found: str) -> None:
    with pytest.raises(StoreError, match=rf"store {re.escape(uri)}; expected .*; found {re.escape(found)}"):
        Store(uri)


def test_a_uri_that_was_made_a_path_says_so() -> None:
    with pytest.raises(StoreError, match=r"store s3:/bkt/x; .*begins with s3://; .*a Path makes one slash of two"):
        Store(Path("s3://bkt/x"))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("listens", [True, False], ids=["silent", "refused"])
def test_an_endpoint_that_does_not_answer_is_named(listens: bool, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for use in (Store.versions, Store.aliases, lambda store: store.publish(small_bundle())):
            with pytest.raises(StoreError, match=f"store {s3}: .*{endpoint} does not answer"):
                use(Store(s3))


def test_time_limits_are_short_for_answers_and_long_for_uploads(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Store(s3).place
    assert isinstance(place, ObjectPlace)
    quick, patient = place._objects.client_options, place._uploads.client_options
    assert place._objects.retry_config["retry_timeout"] <= timedelta(seconds=15)
    assert (quick["read_timeout"], quick["connect_timeout"], quick["allow_http"]) == ("8s", "5s", "true")
    assert "read_timeout" not in patient
    assert patient["timeout"] == "10m"
    monkeypatch.setenv("AWS_READ_TIMEOUT", "77s")
    place = Store(s3).place
    assert isinstance(place, ObjectPlace)
    assert place._objects.client_options["read_timeout"] == "77s"
    assert "read_timeout" not in place._uploads.client_options


@pytest.mark.usefixtures("hasty")
def test_a_slow_upload_is_waited_for(s3: str, slow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow_server)
    place = Store(s3).place
    assert isinstance(place, ObjectPlace)
    with pytest.raises(BaseError):
        obstore.put(place._objects, "versions/x", b"rows")
    obstore.put(place._uploads, "versions/x", b"rows")


def test_a_wrong_bucket_is_found_before_anything_is_written(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: object, **options: object) -> None:
        raise AssertionError("written")

    monkeypatch.setattr(format, "write", write)
    with pytest.raises(
        StoreError, match=r"404 Not Found: NoSuchBucket: The specified bucket does not exist; see"
    ) as no:
        Store("s3://no-such-bucket/store").publish(small_bundle())
    assert "<" not in str(no.value)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("half", [True, False])
def test_missing_credentials_are_named(half: bool, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if not half:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Store(s3).versions()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Generic GCS error: token: GET http://metadata.google.internal/x - HTTP error",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("Generic MicrosoftAzure error: Account must be specified", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("Generic S3 error: 503 <Error><Message>Slow</Message></Error>", "found Generic S3 error: 503 Slow; see"),
        ("Generic S3 error: 403\n\n<?xml?><Code>AccessDenied</Code>\n\nDebug source: x", "403 AccessDenied; see the"),
        ("Generic LocalFileSystem error: full", "found Generic LocalFileSystem error: full$"),
    ],
)
def test_what_is_told_of_an_error(said: str, told: str) -> None:
    found = str(request_failed("store s3://b: read log", GenericError(said)))
    assert re.search(told, found)
    assert "Debug" not in found


@pytest.mark.parametrize(
    ("number", "do"),
    [
        (errno.EROFS, "make it writable, or write elsewhere"),
        (errno.EACCES, "make it writable, or write elsewhere"),
        (errno.ENOSPC, "free space there, or write elsewhere"),
    ],
)
def test_a_store_that_cannot_be_written_says_so_and_what_to_do(
    number: int, do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    for seed in range(2):
        store.promote(store.publish(small_bundle(seed)).id)

    def fail(call: Call) -> object:
        if call.name in ("mkdir", "open to write"):
            raise OSError(number, os.strerror(number), str(call.path))
        return call.run()

    said = f"^store {re.escape(str(store.place))}; expected a folder that can be written; found "
    said += f"{os.strerror(number)}; {do}$"
    for use in (
        lambda: store.tag("spring", "latest"),
        lambda: store.promote("latest", "canary"),
        lambda: store.rollback(),
        lambda: store.lease("latest", seconds=9),
        lambda: store.publish(small_bundle(2)),
    ):
        with intercepted(store.root, fail), pytest.raises(StoreError, match=said):
            use()


def test_a_full_disk_is_named_with_a_way_out(tmp_path: Path) -> None:
    def fail(call: Call) -> object:
        if call.name == "write" and call.path.name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call.run()

    for names in ({"manifest.json"}, {"bucket-00000.safetensors"}):
        with intercepted(tmp_path, fail), pytest.raises(StoreError, match=r"No space.*free space there") as raised:
            Store(tmp_path).publish(small_bundle())
        assert names.pop() in str(raised.value)


def test_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    """The case: a folder of logs counted as a store without versions, which gc would have swept."""
    (tmp_path / "train").mkdir()
    for name in "abc":
        (tmp_path / name).write_text("")
    store = Store(tmp_path)
    said = "expected a store.*; found a folder without log/ that holds a, b, c, ..."
    for use in (store.open, store.versions, store.gc, store.rollback, lambda: store.publish(small_bundle())):
        with pytest.raises(StoreError, match=said):
            use()
    assert len(list(tmp_path.iterdir())) == 4
    other = Store(tmp_path / "other")
    other.root.mkdir()
    for name in (".hidden", "lost+found"):  # of a disk of its own
        (other.root / name).mkdir()
    assert other.versions() == []
    other.publish(small_bundle())
    (other.root / "notes").write_text("")
    assert len(other.versions()) == 1
    with pytest.raises(StoreError, match="store ''; expected a folder or URI"):
        Store("")


def test_a_damaged_log_names_its_store(tmp_path: Path) -> None:
    Store(tmp_path).publish(small_bundle())
    path = tmp_path / "log" / "000000000001.json"
    path.write_text("{")
    with pytest.raises(CorruptVersionError, match=f"^{re.escape(str(path))}; expected JSON"):
        Store(tmp_path).versions()
    path.unlink()
    path.with_name("000000000002.json").write_text("{}")
    with pytest.raises(CorruptVersionError, match=f"^{re.escape(str(path))}; expected an entry"):
        Store(tmp_path).versions()

"""What the page shows in a browser is what the reader gives; nothing that it shows is run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from running import serving
from shop import VOCABULARY, bundle

from embstore.serving import page
from embstore.serving.access import Access
from embstore.serving.indexes import Indexes
from embstore.serving.server import Server
from embstore.store import Store
from embstore.vocabulary import FeatureValues, Vocabulary

webdriver = pytest.importorskip("selenium.webdriver", reason="the dev extra has selenium")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium: apt install chromium chromium-driver"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,1400"),
)
READ, ADMIN = "r" * 20, "a" * 20
MARKUP = "<img src=x onerror=\"document.title='run'\">"
VALUES = Vocabulary(
    {
        "user": FeatureValues.of("user", ["ann", "bob", "zoë", "eve", MARKUP], kept=[True, True, True, False, True]),
        "item": VOCABULARY["item"],
    }
)


class Page:
    """A page in a browser."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, at: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(f"http://{self.address}/{at}")

    def leave(self) -> None:
        self.browser.get("about:blank")
        self.errors()

    def one(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def text(self, css: str) -> str:
        """As it is in the document, shown or not."""
        return str(self.one(css).get_property("textContent"))

    def texts(self, css: str) -> list[str]:
        return [of.get_property("textContent") for of in self.browser.find_elements("css selector", css)]

    def wait(self, until: Callable[[], Any]) -> Any:
        """What it gives, once that is true."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        end = monotonic() + 60
        while True:
            try:
                if found := until():
                    return found
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            assert monotonic() < end, self.text("body")
            sleep(0.02)

    def shown(self, css: str) -> Any:
        """The element, once it is seen."""
        return self.wait(lambda: (of := self.one(css)).is_displayed() and of)

    def ready(self, version: str) -> None:
        self.wait(lambda: self.text("#version") == version)

    def look_up(self, feature: str, value: str) -> None:
        self.one(f"#feature option[value='{feature}']").click()
        field = self.one("#value")
        field.clear()
        field.send_keys(value + "\n")
        self.result(f"{feature}: {value}")

    def result(self, title: str) -> None:
        self.wait(lambda: self.text("#result-title") == title)

    def vector(self) -> bytes:
        return np.array(json.loads(self.text("#numbers")), dtype=np.float32).tobytes()

    def neighbors(self) -> list[tuple[str, str]]:
        return list(zip(self.texts("#neighbors td:first-child"), self.texts("#neighbors td.number"), strict=True))

    def errors(self) -> list[str]:
        """Of the console, since it was asked last."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, with a profile of its own."""
    logging.getLogger("selenium").setLevel(logging.WARNING)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    of = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield of
    of.quit()


@pytest.fixture
def shop(tmp_path: Path) -> Store:
    """With values to search, and a second version."""
    of = Store(tmp_path / "shop")
    of.promote(of.publish(bundle(vocabulary=VALUES)).id)
    of.publish(bundle(seed=1, vocabulary=VALUES))
    return of


@pytest.fixture
def opened(browser: Any, shop: Store, tmp_path: Path) -> Iterator[Callable[..., tuple[Page, Server]]]:
    """Serves ``shop``, and opens its page."""
    with ExitStack() as stack:

        def open_(**settings: Any) -> tuple[Page, Server]:
            indexes = Indexes(features="all", folder=tmp_path / "indexes")
            server, address = stack.enter_context(serving(shop, files=page.files(), indexes=indexes, **settings))
            of = Page(browser, address)
            stack.callback(of.leave)  # before the server goes
            of.open()
            return of, server

        yield open_


def expected_neighbors(server: Server, feature: str, value: Any) -> list[tuple[str, str]]:
    values, scores_BK = server.versions.get().neighbors(feature, [value])
    found = zip(values.to_pylist(), scores_BK[0].tolist(), strict=True)
    return [(str(value), f"{score:.4f}") for value, score in found if value is not None]


def test_a_value_and_its_neighbors(opened: Any, tmp_path: Path) -> None:
    of, server = opened()
    reader = server.versions.get()
    of.ready(reader.version.id)
    assert of.text("#name") == "shop"
    assert of.texts("#features tbody th") == [feature.name for feature in reader.version.schema.features]
    for feature, value, of_reader in (("user", "zoë", "zoë"), ("item", str(2**62), 2**62)):
        of.look_up(feature, value)
        assert of.vector() == reader.lookup(feature, [of_reader]).vectors_BW.tobytes()
        assert len(of.texts("#bars rect")) == reader.prepare(feature).width
        assert of.text("#status").startswith("Known")
        assert of.neighbors() == expected_neighbors(server, feature, of_reader) != []
    nearest = of.neighbors()[0][0]
    of.one("#neighbors button").click()
    of.result(f"item: {nearest}")
    assert of.vector() == reader.lookup("item", [int(nearest)]).vectors_BW.tobytes()
    of.browser.back()
    of.result(f"item: {2**62}")
    for value, status in (("eve", "Pruned"), ("nobody", "Unseen")):
        of.look_up("user", value)
        assert of.text("#status").startswith(status)
    of.wait(lambda: int(of.text("#traffic-note").split()[0].replace("No", "0")) >= 6)
    assert of.text("#p50").split()[1] in ("ms", "s")
    assert of.errors() == []
    picture = tmp_path / "page.png"
    assert of.browser.save_screenshot(str(picture))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_lists_and_what_is_missing(opened: Any) -> None:
    of, server = opened()
    reader = server.versions.get()
    of.ready(reader.version.id)
    of.one("#feature option[value='tags']").click()
    of.shown("#values").send_keys("a\nb")
    of.one("#lookup button").click()
    of.result("tags: a, b")
    assert of.vector() == reader.lookup("tags", [["a", "b"]]).vectors_BW.tobytes()
    assert "not searched" in of.text("#nearest-empty")
    for feature in ("tags", "item"):
        of.open(f"#feature={feature}&missing=yes")
        of.result(f"{feature}: missing")
        assert of.vector() == reader.lookup(feature, [None]).vectors_BW.tobytes()
        assert of.text("#status").startswith("Missing")
    of.open("#feature=tags")
    of.result("tags: an empty list")
    assert of.vector() == reader.lookup("tags", [[]]).vectors_BW.tobytes()
    assert of.errors() == []


def test_errors_are_said_in_words(opened: Any) -> None:
    of, server = opened()
    of.ready(server.versions.get().version.id)
    for at, said in (
        ("#feature=item&value=seven", "digits"),
        (f"#feature=item&value={10**19}", "item"),
        ("#feature=hour&value=24", "hour"),
        ("#feature=shoe&value=1", "No feature shoe"),
        ("#feature=user", "takes one value"),
    ):
        of.open(at)
        assert said in of.shown("#lookup-error").text


def test_a_value_is_not_run(opened: Any) -> None:
    of, server = opened()
    reader = server.versions.get()
    of.ready(reader.version.id)
    of.look_up("user", MARKUP)
    assert of.vector() == reader.lookup("user", [MARKUP]).vectors_BW.tobytes()
    of.look_up("user", "ann")
    assert MARKUP in [value for value, _ in of.neighbors()]
    assert of.texts("img, script:not([src]), [onerror], [style]") == []
    assert of.browser.title == "shop · embstore"
    of.browser.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", MARKUP)
    of.wait(lambda: [error for error in of.errors() if "Content Security Policy" in error])
    assert of.browser.title == "shop · embstore"


def test_promotion(opened: Any, shop: Store) -> None:
    second, first = (info.id for info in shop.versions()[::-1])
    of, server = opened(access=Access(admin=[ADMIN]))
    of.ready(first)
    assert of.texts("#versions td button") == []
    assert not of.one("#rollback").is_displayed()
    of.one("#token").send_keys(ADMIN + "\n")
    of.shown("#versions td button").click()
    assert second in of.shown("#confirm").text
    of.one("#confirm-no").click()
    of.wait(lambda: not of.one("#confirm").is_displayed())
    assert shop.resolve("production") == first
    of.one("#versions td button").click()
    of.shown("#confirm-yes").click()
    of.ready(second)
    assert shop.resolve("production") == second
    of.look_up("user", "ann")
    assert of.vector() == server.versions.get().lookup("user", ["ann"]).vectors_BW.tobytes()
    of.one("#rollback").click()
    of.shown("#confirm-yes").click()
    of.ready(first)
    shop.promote(second)  # by someone else
    of.ready(second)
    assert of.errors() == []


def test_many_versions_and_a_damaged_one(opened: Any, shop: Store) -> None:
    damaged, of_all = shop.resolve("latest"), bundle()
    next((shop.root / "versions" / damaged).rglob("*.safetensors")).unlink()
    for _ in range(25):
        shop.publish(of_all)
    of, server = opened(access=Access(admin=[ADMIN]))
    of.ready(server.versions.get().version.id)
    of.one("#token").send_keys(ADMIN + "\n")
    of.wait(lambda: len(of.texts("#versions tbody tr")) == len(of.texts("#versions td button")) == 25)
    of.shown("#all-versions").click()
    rows = of.texts("#versions tbody tr")
    assert len(rows) == 27
    assert damaged in rows[-2]
    assert "damaged: " in rows[-2]
    assert str(shop.root) not in rows[-2]
    assert len(of.texts("#versions td button")) == 25  # neither of it nor of what production is


def test_tokens(opened: Any, shop: Store) -> None:
    of, _ = opened(access=Access(read=[READ], admin=[ADMIN]))
    of.shown("#token")
    assert not of.one("#main").is_displayed()
    assert of.errors() == []
    of.one("#token").send_keys("x" * 20 + "\n")
    of.wait(lambda: "not know this token" in of.shown("#notice").text)
    of.one("#token").send_keys(READ + "\n")
    of.ready(shop.resolve("production"))
    of.look_up("user", "ann")
    assert of.texts("#versions td button") == []
    of.browser.refresh()
    of.ready(shop.resolve("production"))
    kept = of.browser.execute_script(
        "return [sessionStorage.length, localStorage.length, document.cookie, location.href]"
    )
    assert kept[:3] == [1, 0, ""]
    assert READ not in kept[3]
    of.one("#forget").click()
    of.shown("#token")
    assert not of.one("#main").is_displayed()


def test_a_server_that_goes_and_comes_back(browser: Any, shop: Store, opened: Any) -> None:
    of, server = opened()
    of.ready(server.versions.get().version.id)
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": True})
    assert "does not answer" in of.shown("#notice").text
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    of.wait(lambda: not of.one("#notice").is_displayed())
    assert of.one("#main").is_displayed()


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(opened: Any, shop: Store, width: int) -> None:
    of, _ = opened()
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    of.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        of.open("#feature=user&value=ann")
        of.result("user: ann")
        of_all = of.browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert of_all[1] <= of_all[0] == width
    finally:
        of.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_by_keys_alone(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    of, server = opened()
    of.ready(server.versions.get().version.id)
    focused = of.browser.switch_to.active_element
    for _ in range(10):
        focused.send_keys(Keys.TAB)
        focused = of.browser.switch_to.active_element
        if focused.get_attribute("id") == "value":
            break
    focused.send_keys("ann", Keys.ENTER)
    of.result("user: ann")
    first = of.neighbors()[0][0]
    of.one("#neighbors button").send_keys(Keys.ENTER)
    of.result(f"user: {first}")
    assert of.browser.switch_to.active_element.get_attribute("id") == "result-title"

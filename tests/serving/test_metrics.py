"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

import re

from shop import bundle

from embstore.serving.metrics import Metrics
from embstore.serving.settings import ServeSettings
from embstore.serving.worker import server_of
from embstore.store import Store


def numbers(metrics: Metrics, name: str) -> dict[str, float]:
    """Of a metric that aren't 0, by their labels."""
    found = re.findall(rf"^embstore_{name}{{(.*)}} (\S+)$", metrics.text().decode(), re.M)
    return {labels: float(number) for labels, number in found if float(number)}


def test_swaps_and_those_that_fail(store: Store) -> None:
    """An operator sees what is answered from, and for how long a promoted version can't be."""
    first = store.resolve("production")
    server = server_of(ServeSettings(store=str(store.root), scores=False))
    server.versions.get()
    damaged = store.publish(bundle(1))
    path = next((damaged.folder / "table").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    store.promote(damaged.id)
    for fails in (True, False):
        server.versions.look()
        assert numbers(server.metrics, "swap_failing") == ({'alias="production"': 1} if fails else {})
        assert numbers(server.metrics, "version_loaded") == {f'alias="production",version="{first}"': 1}
        assert numbers(server.metrics, "swaps_total") == {}
        store.promote(first)
    second = store.publish(bundle(2)).id
    store.promote(second)
    server.versions.look()
    assert numbers(server.metrics, "version_loaded") == {f'alias="production",version="{second}"': 1}
    assert numbers(server.metrics, "swaps_total") == {'alias="production"': 1}
    server.close()

"""A publisher killed (kill -9) at any moment and at every step: what it acknowledged is there, nothing is by half."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk import Found, check_store
from publisher import Publisher, said

VERBS = ["publish", "production", "publish", "production", "rollback", "publish", "canary", "production"]


@pytest.fixture(scope="module")
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.close()


def check(root: Path, sound: set[str]) -> Found:
    """The store holds what was acknowledged, and besides at most what the last process was about to do."""
    found = check_store(root, sound)
    words = said(root)
    published = [version for verb, version in words if verb == "publish"]
    begun = words[-1][1] if words and words[-1][0] == "begin" else None
    assert set(published) <= set(found.versions)
    # A process killed after its last acknowledgement may have had one more; runs on one store add up.
    unacknowledged = sum(a[:2] == ["begin", "publish"] and b[0] == "begin" for a, b in itertools.pairwise(words))
    assert len(found.versions) <= len(published) + unacknowledged + (begun == "publish")
    for alias in ("production", "canary"):
        verbs = (alias, "rollback") if alias == "production" else (alias,)
        steps = [i for i, (verb, _) in enumerate(words) if verb in verbs]
        acknowledged = words[steps[-1]][1] if steps else None
        meant = [version for name, _, version in found.history if name == alias]
        assert acknowledged is None or acknowledged in meant
        later = [word for word in words[steps[-1] + 1 if steps else 0 :] if word[0] == "begin" and word[1] in verbs]
        if not later:
            assert found.aliases.get(alias) == acknowledged
    return found


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, publisher: Publisher, tmp_path: Path) -> None:
    moments, killed, states = random.Random(7), 0, set()
    undisturbed = max(publisher.order(root=str(tmp_path / f"whole-{i}"), verbs=VERBS)["seconds"] for i in range(2))
    sound: set[str] = set()
    for number in range(kills * 5):  # many end before their moment comes, when the machine has got faster meanwhile
        root = tmp_path / str(number // 5)  # five runs on one store: they also go on where a killed one stopped
        end = publisher.order(root=str(root), verbs=VERBS, seconds=moments.uniform(0, undisturbed))
        assert not end["failed"]
        killed += end["killed"]
        found = check(root, sound)
        states.add((len(found.versions), len(found.history)))
        if killed == kills:
            break
    assert killed == kills
    assert len(states) > 8, "the moments were not spread over the work"


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_every_step(times: int, publisher: Publisher, tmp_path: Path) -> None:
    """Every call that changes the disk is a step: before it and after it, and in the midst of writes."""
    verbs = ["publish", "production", "publish", "production", "rollback"]
    whole = tmp_path / "whole"
    assert publisher.order(root=str(whole), verbs=verbs, step=0, how="")["done"] == 1
    calls = json.loads(whole.with_suffix(".calls").read_text())
    assert {"mkdir", "open to write", "write", "fsync", "rename", "copy"} <= set(calls)
    for (step, name), turn in itertools.product(enumerate(calls, 1), range(times)):
        ways = ("before", "after", "amid") if name == "write" else ("before", "after")
        # Once each: every second step is killed before, the others after; with more times, all ways in turn.
        root = tmp_path / f"{step}-{turn}"
        end = publisher.order(root=str(root), verbs=verbs, step=step, how=ways[(step + turn) % len(ways)])
        assert end["killed"] == 1, (step, name)
        before = check(root, set())
        assert publisher.order(root=str(root), verbs=["publish", "production"], step=0, how="")["done"] == 1
        after = check(root, set(before.versions))
        assert after.versions[: len(before.versions)] == before.versions
        assert len(after.versions) == len(before.versions) + 1
        assert after.aliases["production"] == after.versions[-1]

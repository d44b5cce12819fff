"""What goes from a worker to the driver and back, without Ray: an actor that answers at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from shown import Shown

from embstore.errors import DataError, GroupError
from embstore.pipelines import mailbox as module
from embstore.pipelines.mailbox import Letters, Mailbox, Reader, listening


class Handle:
    """As Ray's handle of an actor: ``handle.method.remote(...)``."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._of, name)
        return type("Method", (), {"remote": staticmethod(method)})


def get(answer: Any) -> Any:
    return answer


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


def test_the_first_end_counts(mailbox: Mailbox) -> None:
    assert mailbox.ended() == (None, None)
    assert not mailbox.over()
    error = DataError("a label")
    mailbox.end(error=error)
    mailbox.end(result={"steps": 3})
    mailbox.end(error=GroupError("another"))
    assert mailbox.over()
    assert mailbox.ended() == (None, error)
    assert mailbox.heard() == (False, True)
    mailbox.stop()
    assert mailbox.heard() == (True, True)


def test_letters_are_taken_once_and_in_order(mailbox: Mailbox) -> None:
    mailbox.post("say", "one")
    mailbox.post("say", "two")
    assert mailbox.take() == [("say", "one"), ("say", "two")]
    assert mailbox.take() == []


def test_what_a_worker_shows_is_shown(mailbox: Mailbox) -> None:
    handle, shown = Handle(mailbox), Shown()
    letters, reader = Letters(handle), Reader(handle, shown)
    generator = torch.Generator().manual_seed(1)
    steps = [(torch.rand(n, generator=generator).round(), torch.randn(n, generator=generator)) for n in (5, 1, 4)]
    with letters("train", 40) as bar:
        bar.resume(20)
        for number, (label_B, logits_B) in enumerate(steps):
            bar.step(2 * len(label_B), label_B, logits_B, loss=0.5 - number / 10)
        with letters("evaluate", None) as inner:
            inner.advance(7)
            inner.advance(2)
            reader.read(get)
            assert shown.open == 2
        letters.record({"step": 3}, Path("run"))
        letters.say("published")
    letters.finish(Path("run"))
    reader.read(get)
    train, evaluate = shown.bars
    assert (train.label, train.total, train.before, train.rows) == ("train", 40, 20, 20)
    assert train.loss == pytest.approx(0.3)
    for ours, theirs in zip(zip(*train.parts, strict=True), zip(*steps, strict=True), strict=True):
        assert torch.equal(torch.cat(ours), torch.cat(theirs))
    assert (evaluate.label, evaluate.total, evaluate.rows) == ("evaluate", None, 9)
    assert (shown.records, shown.lines, shown.finished, shown.open) == ([{"step": 3}], ["published"], [Path("run")], 0)


def test_steps_share_letters(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short a step, letters are not."""
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    letters = Letters(Handle(mailbox))
    mailbox.take()
    with letters("train", 1000) as bar:
        for number in range(100):
            now = number / 100
            bar.step(1, torch.ones(1), torch.zeros(1), loss=0.1)
    posted = mailbox.take()
    assert [kind for kind, *_ in posted] == ["open", *["step"] * 5, "close"]
    assert sum(rows for kind, _, *rest in posted if kind == "step" for rows in rest[:1]) == 100


def test_a_new_group_closes_what_the_lost_one_left_open(mailbox: Mailbox) -> None:
    handle, shown = Handle(mailbox), Shown()
    reader = Reader(handle, shown)
    Letters(handle)("train", 40).__enter__()
    reader.read(get)
    assert (shown.open, shown.lines) == (1, [])
    again = Letters(handle)
    with again("train", 40) as bar:
        bar.advance(40)
    reader.read(get)
    assert shown.open == 0
    assert shown.lines == ["a worker was lost; all start again from the last checkpoint"]
    assert [bar.rows for bar in shown.bars] == [0, 40]


def test_the_reader_closes_its_bars(mailbox: Mailbox) -> None:
    handle, shown = Handle(mailbox), Shown()
    reader, letters = Reader(handle, shown), Letters(handle)
    letters("train", 40).__enter__()
    letters("evaluate", 40).__enter__()
    reader.read(get)
    reader.close()
    assert shown.open == 0


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LISTEN_SECONDS", 0.001)
    monkeypatch.setattr(module, "_LEAVE_SECONDS", 0.001)


def test_a_worker_hears_that_it_should_stop(mailbox: Mailbox, short: None) -> None:
    stopped, left = threading.Event(), threading.Event()
    with listening(Handle(mailbox), get, stop=stopped.set, leave=left.set):
        assert not stopped.wait(0.05)
        mailbox.stop()
        assert stopped.wait(10)
    assert not left.is_set()


def test_a_worker_that_waits_for_one_that_failed_leaves(mailbox: Mailbox, short: None) -> None:
    stopped, left = threading.Event(), threading.Event()
    with listening(Handle(mailbox), get, stop=stopped.set, leave=left.set):
        assert not left.wait(0.05)
        mailbox.end(error=DataError("a label"))
        assert left.wait(10)
    assert not stopped.is_set()


def test_a_worker_that_has_ended_listens_no_more(mailbox: Mailbox, short: None) -> None:
    left = threading.Event()
    with listening(Handle(mailbox), get, stop=lambda: None, leave=left.set):
        pass
    mailbox.end(result={})
    assert not left.wait(0.05)

"""What a worker shows and says, on its way to the process that started the job.

worker 0                             actor                     driver
  Letters (a Progress)  ── post ──>  Mailbox  <── take ──      Reader ──> the Progress a person sees
  stop?                 <─────────────────────── stop ──       Ctrl-C
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from embstore.progress import Bar, Progress

_SECONDS = 0.25  # between two letters of a bar
_LISTEN_SECONDS, _LEAVE_SECONDS = 0.5, 5.0


class Mailbox:
    """The actor: keeps letters until they are taken, and how the job has ended."""

    def __init__(self) -> None:
        self._letters: list[tuple[Any, ...]] = []
        self._result: Any = None
        self._error: Exception | None = None
        self._stop = False

    def post(self, *letter: Any) -> None:
        """Leave a letter."""
        self._letters.append(letter)

    def take(self) -> list[tuple[Any, ...]]:
        """All letters since the last call."""
        taken, self._letters = self._letters, []
        return taken

    def stop(self) -> None:
        """Ask the job to stop where it can go on again."""
        self._stop = True

    def end(self, result: Any = None, error: Exception | None = None) -> None:
        """The job is over; its first end counts."""
        if not self.over():
            self._result, self._error = result, error

    def over(self) -> bool:
        """Whether it is."""
        return self._result is not None or self._error is not None

    def heard(self) -> tuple[bool, bool]:
        """Whether the job was asked to stop, and whether it is over."""
        return self._stop, self.over()

    def ended(self) -> tuple[Any, Exception | None]:
        """Its result, or why it has none; neither before it is over."""
        return self._result, self._error


class Letters(Progress):
    """A worker's progress: posts what it is told; never waits for the mailbox.

    Args:
        mailbox: handle of the actor.
    """

    def __init__(self, mailbox: Any) -> None:
        self._post = mailbox.post.remote
        self._bars = 0
        self._post("begin")  # bars of workers that died are closed

    def __call__(self, label: str, total: int | None) -> Bar:
        self._bars += 1
        return _LetterBar(self._post, self._bars, label, total)

    def say(self, text: str) -> None:
        self._post("say", text)

    def record(self, values: dict[str, Any], folder: Path) -> None:
        self._post("record", values, folder)

    def finish(self, folder: Path) -> None:
        self._post("finish", folder)


class _LetterBar(Bar):
    def __init__(self, post: Any, number: int, label: str, total: int | None) -> None:
        self._post, self._number, self._label, self._total = post, number, label, total
        self._rows, self._due = 0, 0.0
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._loss = 0.0

    def __enter__(self) -> Bar:
        self._post("open", self._number, self._label, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._send()
        self._post("close", self._number)

    def resume(self, done: int) -> None:
        self._post("resume", self._number, done)

    def advance(self, rows: int) -> None:
        self._rows += rows
        self._send_when_due()

    def step(self, rows: int, label_B: Tensor, logits_B: Tensor, loss: float) -> None:
        self._rows += rows
        self._loss = loss
        self._steps.append((label_B, logits_B.cpu()))
        self._send_when_due()

    def _send_when_due(self) -> None:
        if monotonic() >= self._due:
            self._send()

    def _send(self) -> None:
        if self._steps:
            label_B, logits_B = (torch.cat(part).numpy() for part in zip(*self._steps, strict=True))
            self._post("step", self._number, self._rows, label_B, logits_B, self._loss)
        elif self._rows:
            self._post("advance", self._number, self._rows)
        self._rows, self._steps, self._due = 0, [], monotonic() + _SECONDS


class Reader:
    """Shows what the letters say.

    Args:
        mailbox: handle of the actor.
        progress: where.
    """

    def __init__(self, mailbox: Any, progress: Progress) -> None:
        self._mailbox, self._progress = mailbox, progress
        self._bars: dict[int, Bar] = {}
        self._begun = False

    def read(self, get: Callable[[Any], Any]) -> None:
        """Show what came since the last call; ``get`` is ``ray.get``."""
        for kind, *rest in get(self._mailbox.take.remote()):
            self._show(kind, rest)

    def close(self) -> None:
        """Close the bars that are still open."""
        while self._bars:
            self._bars.popitem()[1].__exit__(None, None, None)

    def _show(self, kind: str, rest: list[Any]) -> None:
        if kind == "begin":
            self.close()
            if self._begun:
                self._progress.say("a worker was lost; all start again from the last checkpoint")
            self._begun = True
        elif kind == "open":
            number, label, total = rest
            self._bars[number] = self._progress(label, total).__enter__()
        elif kind in ("say", "record", "finish"):
            getattr(self._progress, kind)(*rest)
        elif kind == "close":
            if (bar := self._bars.pop(rest[0], None)) is not None:
                bar.__exit__(None, None, None)
        elif rest[0] not in self._bars:
            return  # a late letter of a worker that was lost
        elif kind == "step":
            number, rows, label_B, logits_B, loss = rest
            self._bars[number].step(rows, torch.tensor(label_B), torch.tensor(logits_B), loss)
        else:  # advance, resume
            number, rows = rest
            getattr(self._bars[number], kind)(rows)


@contextmanager
def listening(
    mailbox: Any, get: Callable[[Any], Any], *, stop: Callable[[], object], leave: Callable[[], object]
) -> Iterator[None]:
    """Call ``stop()`` when the job is asked to stop; ``leave()`` when it is over and this worker still at work a while
    later: it waits for one that failed.

    Args:
        mailbox: handle of the actor.
        get: ``ray.get``.
    """
    done = threading.Event()

    def listen() -> None:
        while not done.wait(_LISTEN_SECONDS):
            stopping, over = get(mailbox.heard.remote())
            if stopping:
                stop()
            if over and not done.wait(_LEAVE_SECONDS):
                leave()

    threading.Thread(target=listen, name="embstore-listen", daemon=True).start()
    try:
        yield
    finally:
        done.set()

"""Processes that are ranks of a group, kept for many cases: importing what they need takes seconds, a case a fraction.

python ranks.py      reads orders as lines of JSON, answers each with one, ends when its standard input does

An order names a function of ``cases`` and its arguments; it is called with the group that ``joined`` gives.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_SECONDS = 120.0


class Ranks:
    """The processes, as seen from a test."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, world: int, case: str, *, seconds: float = _SECONDS, **arguments: Any) -> list[Any]:
        """What the case returned on each rank.

        Raises:
            AssertionError: it failed on one.
        """
        answers = self.answers(world, case, seconds=seconds, **arguments)
        for rank, answer in enumerate(answers):
            assert "result" in answer, f"rank {rank}: {answer}"
        return [answer["result"] for answer in answers]

    def answers(
        self,
        world: int,
        case: str,
        *,
        seconds: float = _SECONDS,
        environment: dict[str, str] | None = None,
        ranks: tuple[int, ...] | None = None,
        ends: bool = False,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """``{"result"}`` or ``{"error", "text"}``, and ``seconds``, of each rank; ``{"died"}`` of one that did.

        Args:
            seconds: hard limit; the processes are killed then, and the test fails.
            environment: more variables.
            ranks: those that are started; all when not given.
            ends: whether a process ends when the case has failed on it, as a command does.
        """
        started = tuple(range(world)) if ranks is None else ranks
        while len(self._processes) < len(started):
            self._processes.append(_start())
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(environment or {})}
        for process, rank in zip(self._processes, started, strict=False):
            order: dict[str, Any] = {"case": case, "arguments": arguments, "ends": ends}
            order["environment"] = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                **master,
            }
            assert process.stdin
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        until = time.monotonic() + seconds
        answers = [_answer(process, until) for process in self._processes[: len(started)]]
        if ends or any(answer.keys() & {"died", "late"} for answer in answers):
            self.close()  # whoever is left is not to be trusted either
        assert not any("late" in answer for answer in answers), f"{case} was not done after {seconds} s: {answers}"
        return answers

    def close(self) -> None:
        """End them all."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _answer(process: subprocess.Popen[str], until: float) -> dict[str, Any]:
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], max(until - time.monotonic(), 0))
    if not ready:
        return {"late": True}
    line = process.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line else {"died": process.wait()}
    return answer


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    import cases

    from embstore.distributed import joined

    for line in sys.stdin:
        order, started = json.loads(line), time.monotonic()
        os.environ.update(order["environment"])
        answer: dict[str, Any]
        try:
            cases.before(order["arguments"])
            with joined() as group:
                answer = {"result": getattr(cases, order["case"])(group, **order["arguments"])}
        except BaseException as error:  # a rank tells of everything
            answer = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
        finally:
            cases.after()
            for name in order["environment"]:
                del os.environ[name]
        answers.write(json.dumps({**answer, "seconds": time.monotonic() - started}) + "\n")
        answers.flush()
        if order["ends"] and "error" in answer:
            return


if __name__ == "__main__":
    _serve()

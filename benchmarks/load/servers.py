"""Server processes of a benchmark: started, waited for, measured, ended by their id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 120.0
_END_SECONDS = 30.0


class Process:
    """A running server, and the processes it has started.

    Args:
        addresses: of it, by what ``callers.caller`` calls them.
    """

    def __init__(self, popen: subprocess.Popen[bytes], addresses: dict[str, str]) -> None:
        self.popen, self.addresses = popen, addresses

    def pids(self) -> list[int]:
        """Its process and all below."""
        found = [self.popen.pid]
        for pid in found:  # grows meanwhile
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """That all of them have used."""
        return sum(_cpu_seconds(pid) for pid in self.pids())

    def memory_bytes(self) -> int:
        """Their proportional resident memory (Pss): pages that several share count once, in all."""
        return sum(_pss(pid) for pid in self.pids())


@contextmanager
def embstore(store: Path, log: Path, *, workers: int, options: Sequence[str] = ()) -> Iterator[Process]:
    """``embstore serve`` of a store, on free ports."""
    ports = {"http": free_port(), "grpc": free_port()}
    command = [
        sys.executable,
        "-m",
        "embstore",
        "serve",
        str(store),
        "--workers",
        str(workers),
        "--log-level",
        "warning",
    ]
    command += ["--http-port", str(ports["http"]), "--grpc-port", str(ports["grpc"]), *options]
    with running(command, ports, log) as process:
        yield process


@contextmanager
def running(command: Sequence[str], ports: dict[str, int], log: Path) -> Iterator[Process]:
    """A command that listens on ports of the loopback, from when it does until it has ended."""
    with log.open("wb") as output:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        for port in ports.values():
            _wait(lambda port=port: _listens(port), popen, log)
        yield Process(popen, {name: f"127.0.0.1:{port}" for name, port in ports.items()})
    finally:
        if popen.poll() is not None:
            print(f"{command[:4]} ended with code {popen.returncode}:\n{_tail(log)}", file=sys.stderr)
        popen.terminate()
        try:
            popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def free_port() -> int:
    """That nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def busy_seconds() -> float:
    """Processor time that anybody on this machine has used, and what its host has kept from it."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def load_average() -> float:
    """Processes that ran or wanted to, over the last minute."""
    return round(os.getloadavg()[0], 2)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(ready: Callable[[], bool], popen: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while not ready():
        if popen.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{popen.args} doesn't listen:\n{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024

"""Processes that train one model together: how they find each other, what they tell each other, how they fail.

    torchrun --nproc-per-node 2 -m embstore train config.yaml

    with joined() as group:          # by the variables that torchrun and Ray Train set; alone without them
        Run(config, build, group=group).train()

When the process of a rank ends before its time, the others fail too, at once; one that only hangs is waited for no
longer than ``EMBSTORE_GROUP_SECONDS`` (1,800).
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from embstore.errors import EmbstoreError, GroupError, Interrupted, LostRankError

_JOIN_SECONDS, _SECONDS, _REPORT_SECONDS = 120.0, 1800.0, 5.0
_PACKAGES = ("embstore", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
_CPU = torch.device("cpu")
T = TypeVar("T")
# What gloo, NCCL and torch's store say of a peer that is gone or late; they raise plain RuntimeErrors.
_OF_PEERS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe", "timed out")


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    Args:
        rank: this one, from 0.
        world: how many there are.
        process_group: how they talk; ``None`` for a process alone.
        device: where they train, and of the tensors they exchange.

    Every method but the properties is called by all ranks, in the same order.
    """

    rank: int = 0
    world: int = 1
    process_group: dist.ProcessGroup | None = None
    device: torch.device = _CPU

    @property
    def alone(self) -> bool:
        """Whether nothing is shared out: there is no other process to talk to."""
        return self.process_group is None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and shows what is done once."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's part of ``count`` things: neighbours, of a number that differs by one at most."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def barrier(self) -> None:
        """Wait until all have come so far."""
        self.sum(torch.zeros(1))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each; ``tensor`` is overwritten with it."""
        if self.process_group is None:
            return tensor
        on_device = tensor.to(self.device)
        dist.all_reduce(on_device, group=self.process_group)
        return tensor if on_device is tensor else tensor.copy_(on_device)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether a rank has it set."""
        return tuple(bool(count) for count in self.sum(torch.tensor(flags, dtype=torch.float32)))

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send ``parts[r]`` to rank r; what each rank sent to this one, by rank.

        Args:
            parts: one for each rank; all of all ranks of one dtype, and of one shape but for the first dimension.
        """
        if self.process_group is None:
            return list(parts)
        like = parts[0]
        row = like.shape[1:].numel() * like.element_size()
        send = torch.cat([part.detach().cpu().reshape(-1) for part in parts]).view(torch.uint8)
        lengths = torch.tensor([len(part) for part in parts])
        found = torch.empty_like(lengths)
        self._all_to_all(found, lengths, None, None)
        counts = found.tolist()
        received = torch.empty(sum(counts) * row, dtype=torch.uint8)
        self._all_to_all(received, send, [n * row for n in counts], [n * row for n in lengths.tolist()])
        out = received.view(like.dtype).reshape(sum(counts), *like.shape[1:])
        return list(out.split(counts))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each rank, by rank; they may differ in the first dimension."""
        return self.exchange([tensor] * self.world)

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """As ``gather``, on rank 0; the others get empty tensors."""
        return self.exchange([tensor if rank == 0 else tensor[:0] for rank in range(self.world)])

    def told(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank: anything JSON can hold."""
        return self.lead(lambda: value)

    def tell(self, value: Any) -> list[Any]:
        """The value of each rank, by rank: anything JSON can hold."""
        return self.each(lambda: value)

    def lead(self, work: Callable[[], Any]) -> Any:
        """Let rank 0 do some work; its result, which JSON can hold, on every rank.

        Raises:
            EmbstoreError, OSError: what the work raised, on every rank; of any other error the others get a
                ``LostRankError``.
        """
        if self.alone:
            return work()
        if self.first:
            try:
                result = work()
                text = json.dumps({"result": result})
            except Exception as error:
                self._send(json.dumps({"error": _said(error, self.rank)}))
                raise
            self._send(text)
            return result
        told = json.loads(self._send("")[0])
        if "error" in told:
            raise _heard(told["error"])
        return told["result"]

    def each(self, work: Callable[[], Any]) -> list[Any]:
        """Let each rank do some work without the others; the result, which JSON can hold, of each, by rank.

        Raises:
            EmbstoreError, OSError: what the work raised on the first rank where it failed, on every rank; of any other
                error the others get a ``LostRankError``.
        """
        if self.alone:
            return [work()]
        failed: Exception | None = None
        try:
            own = json.dumps({"result": work()})
        except Exception as error:
            failed, own = error, json.dumps({"error": _said(error, self.rank)})
        told = [json.loads(theirs) for theirs in self._send(own)]
        for rank, theirs in enumerate(told):
            if "error" in theirs:
                if failed is not None and rank == self.rank:
                    raise failed
                raise _heard(theirs["error"]) from failed
        return [theirs["result"] for theirs in told]

    def together(self, work: Callable[[], T]) -> T:
        """As ``each``, for a result that JSON can't hold: that of this rank."""
        found: list[T] = []
        self.each(lambda: found.append(work()))
        return found[0]

    def _send(self, text: str) -> list[str]:
        """The text of each rank, by rank."""
        sent = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        return [bytes(found.numpy()).decode() for found in self.gather(sent)]

    def _all_to_all(self, into: Tensor, of: Tensor, into_sizes: list[int] | None, of_sizes: list[int] | None) -> None:
        received = into.to(self.device)
        dist.all_to_all_single(received, of.to(self.device), into_sizes, of_sizes, group=self.process_group)
        if received is not into:
            into.copy_(received)


ALONE = Group()


@contextmanager
def joined(*, device: str = "cpu", report: Callable[[Exception], object] | None = None) -> Iterator[Group]:
    """The group of this process, as the environment says: ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``.

    Waits ``EMBSTORE_JOIN_SECONDS`` (120) for the others, and leaves the group at the end; a process group that is there
    already is used, and left as it is. Without ``WORLD_SIZE``, or in a world of one, the process is alone.

    Args:
        device: ``"cpu"`` (gloo) or ``"cuda"`` (NCCL, the GPU ``LOCAL_RANK``; ``"cuda:1"`` names one).
        report: says what the block has raised, an error of embstore or the system's, on one rank of several. Of what
            all raise alike rank 0 alone says it; another waits some seconds for that, lest nobody does.

    Raises:
        GroupError: variables that can't be; no such GPU; a master or ranks that don't come in time; other versions on
            other ranks.
        LostRankError: a rank left or didn't answer.
        KernelError: torchrec can't be loaded.
    """
    world = _whole("WORLD_SIZE", 1, least=1)
    on = _chosen(torch.device(device))
    if world == 1:
        yield Group(device=on)
        return
    rank = _whole("RANK", None, least=0)
    if rank >= world:
        raise GroupError("RANK", expected=f"less than WORLD_SIZE={world}", found=str(rank))
    theirs = dist.is_initialized()  # as Ray Train has it: whoever made the process group ends it
    store = None
    begun = False
    try:
        if theirs:
            group = Group(rank, world, dist.group.WORLD, on)
            _compare(group.tell(_about()))
        else:
            store = _meet(rank, world)
            backend = "nccl" if on.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=group_seconds())
            )
            group = Group(rank, world, dist.group.WORLD, on)
            group.barrier()
        begun = True
        yield group
        group.barrier()  # rank 0 may hold the store: it leaves last
    except Exception as error:
        lost = _lost(error, rank, world)
        if begun and report is not None:
            _report(lost or error, rank, store, report)
        if lost is None:
            raise
        raise lost from error
    finally:
        if dist.is_initialized() and not theirs:
            with suppress(RuntimeError):
                dist.destroy_process_group()


def group_seconds() -> float:
    """How long a rank that hangs is waited for: ``EMBSTORE_GROUP_SECONDS``.

    Raises:
        GroupError: it is no number of seconds.
    """
    return _seconds("EMBSTORE_GROUP_SECONDS", _SECONDS)


def _chosen(device: torch.device) -> torch.device:
    """The device, and for ``"cuda"`` which of the GPUs, made the process's own."""
    if device.type == "cuda":
        device = torch.device("cuda", _whole("LOCAL_RANK", 0, least=0)) if device.index is None else device
        there = torch.cuda.device_count()
        if device.index >= there:
            do = "start a process for each GPU, with a torch built for CUDA"
            raise GroupError(
                f"device {device}", expected="a GPU of that number", found=f"{there} GPU" + "s" * (there != 1), do=do
            )
        torch.cuda.set_device(device)
    return device


def _meet(rank: int, world: int) -> Any:
    """The store by which ranks find each other, once all are there and have the same versions."""
    address, port = os.environ.get("MASTER_ADDR", ""), _whole("MASTER_PORT", None, least=0)
    if not address:
        raise GroupError("MASTER_ADDR", expected="the address of rank 0", found="none", do="start it with torchrun")
    seconds = _seconds("EMBSTORE_JOIN_SECONDS", _JOIN_SECONDS)
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself holds it
    missing = list(range(world))
    try:
        tcp = dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            world,
            is_master=rank == 0 and not agents,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"embstore/{attempt}", tcp)  # type: ignore[attr-defined]
        store.set(f"rank/{rank}", json.dumps(_about()))
        found = []
        while missing:
            store.wait([f"rank/{missing[0]}"], timedelta(seconds=seconds))
            found.append(json.loads(store.get(f"rank/{missing[0]}")))
            del missing[0]
        store.set(f"seen/{rank}", "")
        if rank == 0:  # who may hold the store, and goes if the others can't be trained with
            store.wait([f"seen/{other}" for other in range(world)], timedelta(seconds=seconds))
    except RuntimeError as error:
        what = f"rank {rank} of {world} at {address}:{port}"
        gone = "the master" if len(missing) == world else f"rank {missing[0]}" if missing else "all ranks"
        expected = f"{gone} within {seconds:g} s (EMBSTORE_JOIN_SECONDS)"
        do = "see that all ranks were started, and can reach the master's port"
        raise GroupError(what, expected=expected, found=str(error).split("\n")[0], do=do) from error
    _compare(found)
    return store


def _about() -> dict[str, Any]:
    """What a rank says of itself to the others before they begin."""
    return {"host": socket.gethostname(), "versions": _versions(), "trouble": _trouble()}


def _compare(found: list[dict[str, Any]]) -> None:
    """Refuse ranks that can't train together, by what they say of themselves."""
    for other, theirs in enumerate(found):
        if theirs["trouble"]:
            raise GroupError(f"rank {other} on {theirs['host']} can't train", found=theirs["trouble"])
        if theirs["versions"] != found[0]["versions"]:
            where = f"rank {other} on {theirs['host']}"
            do = "install the same packages everywhere"
            raise GroupError(where, expected=_shown(found[0]), found=_shown(theirs), do=do)


def _trouble() -> str:
    """Why torchrec's exchange can't be used here, if so: told to all, so that none waits for one that can't come."""
    from embstore.planning.row_wise import load_torchrec

    try:
        load_torchrec()
    except EmbstoreError as error:
        return str(error)
    return ""


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _shown(about: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in about["versions"].items())


def _lost(error: Exception, rank: int, world: int) -> LostRankError | None:
    """What it means that another rank is gone or late, if an error says so."""
    if not isinstance(error, RuntimeError) or not _of_peers(error):
        return None
    return LostRankError(
        f"rank {rank} of {world} lost another",
        expected="all ranks at work",
        found=str(error).split("\n")[0],
        do="see what the others said; the run goes on from its last checkpoint when it is started again",
    )


def _report(error: Exception, rank: int, store: Any, report: Callable[[Exception], object]) -> None:
    """Say an error, unless rank 0 has: by what it leaves in the store."""
    if not isinstance(error, (EmbstoreError, Interrupted, OSError)):
        return
    text = re.sub(r" \(on rank \d+\)", "", f"{type(error).__name__}: {error}")
    with suppress(RuntimeError):  # no store, or none any more
        until = time.monotonic() + _REPORT_SECONDS
        while rank and store is not None and time.monotonic() < until:
            if not store.check(["reported"]):  # wait() would print a warning of its own
                time.sleep(0.05)
            elif store.get("reported").decode() == text:
                return
            else:
                break
    report(error)
    with suppress(RuntimeError):
        if rank == 0 and store is not None:
            store.set("reported", text)


def _said(error: Exception, rank: int) -> dict[str, Any]:
    if isinstance(error, OSError):
        file = None if error.filename is None else str(error.filename)
        return {"errno": error.errno, "found": f"{error.strerror or error} (on rank {rank})", "file": file}
    if not isinstance(error, EmbstoreError):
        error = LostRankError(f"rank {rank} could not go on", found=f"{type(error).__name__}: {error}")
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "expected": error.expected,
        "found": error.found,
        "do": error.do,
    }


def _heard(said: dict[str, Any]) -> EmbstoreError | OSError:
    if "errno" in said:
        return OSError(said["found"]) if said["errno"] is None else OSError(said["errno"], said["found"], said["file"])
    kinds, found = [EmbstoreError], {}
    while kinds:
        kind = kinds.pop()
        found[kind.__name__] = kind
        kinds += kind.__subclasses__()
    return found[said["kind"]](said["what"], expected=said["expected"], found=said["found"], do=said["do"])


def _of_peers(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _OF_PEERS)


def _whole(name: str, default: int | None, *, least: int) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < least:
        do = "start it with torchrun"
        raise GroupError(name, expected=f"a whole number, {least} or more", found=repr(text), do=do)
    return int(text)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise GroupError(name, expected="seconds, more than 0", found=repr(text))
    return seconds

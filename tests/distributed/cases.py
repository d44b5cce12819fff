"""What ranks are asked to do: functions called with the group, whose arguments and results are JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import obstore
import torch
import torch.distributed as dist
from torch import Tensor, nn

from embstore import checkpoints, distributed, models, training
from embstore.batch import Batch, FeatureTokens
from embstore.checkpoints import Checkpoints
from embstore.config import parse
from embstore.continuous import Publisher
from embstore.distributed import Group
from embstore.embeddings.unified import DTYPES, UnifiedEmbedding
from embstore.errors import CorruptVersionError, DataError, Interrupted, StoreError
from embstore.kernels import TableOptimizer
from embstore.logs import ParquetLog
from embstore.lookahead import look_ahead
from embstore.progress import Bar, Progress, no_progress
from embstore.run import Run
from embstore.run_folder import RunFolder
from embstore.schema import Feature, Schema
from embstore.settings import RunConfig
from embstore.sharding.batch_norm import share_batch_norm
from embstore.store import Change, Store, Version, delta, format
from embstore.store.files import sha256_file
from embstore.store.local import LocalPlace
from embstore.store.log import Log
from embstore.training import Trainer
from embstore.vocabulary import Vocabulary

_undo: list[Callable[[], None]] = []


def before(arguments: dict[str, Any]) -> None:
    """What has to be so before the group is joined."""
    mine = arguments.pop("on_rank", None) in (None, int(os.environ["RANK"]) if os.environ["RANK"].isdigit() else None)
    what = arguments.pop("with_", None)
    if not mine or what is None:
        return
    if what == "other versions":
        known = distributed._versions
        distributed._versions = lambda: {**known(), "torchrec": "0.1"}
        _undo.append(lambda: setattr(distributed, "_versions", known))
    if what == "no torchrec":
        name = "torchrec.distributed.planner.types"
        module = sys.modules.pop(name, None)
        sys.modules[name] = None  # type: ignore[assignment]
        _undo.append(lambda: sys.modules.pop(name) and module and sys.modules.update({name: module}))


def after() -> None:
    """Undo it."""
    while _undo:
        _undo.pop()()


def table(group: Group, **of: Any) -> dict[str, Any]:
    """Train a table shared out and one that is not on the same batches; by how much they differ.

    Args:
        of: features, rows, dim and so on, as ``test_table`` draws them.
    """
    group = _with_one(group)
    features = [Feature(**feature) for feature in of["features"]]
    settings: dict[str, Any] = {
        "num_tables": of["num_tables"],
        "exact_tokens": {feature.name: torch.arange(of["known"]) for feature in features if feature.exact},
        "optimizer": TableOptimizer(name=of["optimizer"], learning_rate=0.1, eps=1e-3, l2=of["l2"]),
        "dtype": DTYPES[of["dtype"]],
        "seed": of["seed"],
    }
    one = UnifiedEmbedding(features, of["rows"], of["dim"], **settings)
    many = UnifiedEmbedding(features, of["rows"], of["dim"], group=group, kernel=of["kernel"], **settings)
    shard, generator = many.shard, torch.Generator().manual_seed(of["seed"])
    rows = slice(shard.start, shard.stop)
    one.track_changes()
    many.track_changes()
    found: dict[str, Any] = {
        "shard": [shard.start, shard.stop],
        "first rows": torch.equal(one.weight[rows], many.weight),
    }
    forward, outputs = 0.0, []
    for size in of["batches"]:
        batch, share = _tokens(of["features"], of["lists"], size, generator), group.share(size)
        part = batch.slice(share.start, share.stop)
        out_BW, part_BW = one(batch)[share.start : share.stop], many(part)
        outputs.append(torch.equal(out_BW, part_BW))
        forward = max(forward, _largest(out_BW - part_BW))
        grad_BW = torch.randn(size, one.width, generator=generator)
        one(batch).backward(grad_BW)
        part_BW.backward(grad_BW[share.start : share.stop])
    changed = many.changed_rows()
    found["changed"] = changed is None or torch.equal(changed, _within(one.changed_rows(), shard))
    one.eval()
    many.eval()
    ours, theirs = many.optimizer_state(), one.optimizer_state()
    found["steps"] = (ours.steps, ours.rates) == (theirs.steps, theirs.rates)
    found["state"] = max((_apart(ours.table[name], theirs.table[name][rows]) for name in ours.table), default=0.0)
    found["rows"] = _largest(many.weight.float() - one.weight[rows].float())
    batch = _tokens(of["features"], of["lists"], 5, generator)
    found["evaluated"] = _largest(many(batch) - one(batch))
    name = features[0].name
    values: list[Any] = [[1, 2], [], [3]] if name in of["lists"] else [1, 2, None]
    found["looked up"] = _largest(many.lookup(name, values) - one.lookup(name, values))
    return {**found, "forward": forward, "first forward": outputs[0] if outputs else True}


def _with_one(group: Group) -> Group:
    """The group, and for a process alone one of a world of one: it shares its table out, too."""
    if not group.alone:
        return group
    _undo.append(dist.destroy_process_group)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return replace(group, process_group=dist.group.WORLD)


def ahead(group: Group, sizes: list[int]) -> list[bool]:
    """Whether batches prepared one or all before their use give the same bits, with lookups by others in between.

    A batch may be prepared for training and only be looked up, or be left over.
    """
    group, outputs = _with_one(group), []
    features = [Feature(name="one", lookups=2), Feature(name="many", pooling="mean")]
    generator = torch.Generator().manual_seed(0)
    drawn = [_tokens([asdict(of) for of in features], ["many"], size, generator) for size in sizes]
    parts = [
        tokens.slice(group.share(size).start, group.share(size).stop) for tokens, size in zip(drawn, sizes, strict=True)
    ]
    batches = [Batch(part, torch.empty(part.rows, 0)) for part in parts]
    optimizer = TableOptimizer(learning_rate=0.1, l2=0.01)
    for how in ("plain", "one ahead", "all ahead"):
        table = UnifiedEmbedding(features, 50, 4, group=group, optimizer=optimizer)
        given: Iterable[Batch] = batches
        if how == "one ahead":
            given = look_ahead(batches, table)
        elif how == "all ahead":
            given = [table.prepare(batch) for batch in batches]
        out = []
        for number, batch in enumerate(given):
            if number % 3 == 1:
                table.eval()
                out.append(table(batches[0]))
                table.train()
            if number % 4 == 3:
                with torch.no_grad():
                    out.append(table(batch))
                continue
            out_BW = table(batch)
            out.append(out_BW.detach().clone())
            out_BW.backward(torch.ones_like(out_BW))
        outputs.append([*out, table.weight, *table.optimizer_state().table.values()])
    return [len(of) == len(outputs[0]) and all(map(torch.equal, of, outputs[0])) for of in outputs[1:]]


def too_large(group: Group) -> None:
    """A table of more rows than there is memory for, by far."""
    UnifiedEmbedding([Feature(name="a")], 10**12, 64, group=group)


def batch_norm(group: Group, sizes: list[int], kind: str, positions: list[int]) -> list[float]:
    """By how much outputs, gradients and statistics differ from those of one process on the whole batch."""
    torch.manual_seed(0)
    of = models.layers.BatchNorm if kind == "BatchNorm" else getattr(nn, kind)
    alone, generator = of(3).double(), torch.Generator().manual_seed(1)
    nn.init.normal_(alone.weight)
    shared = of(3).double()
    shared.load_state_dict(alone.state_dict())
    network = share_batch_norm(nn.Sequential(shared), group)
    differences = []
    for size in sizes:
        shape, share = (size, 3, *positions), group.share(size)
        x_BX = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        grad_BX = torch.randn(shape, generator=generator, dtype=torch.float64)
        part_BX = x_BX.detach()[share.start : share.stop].clone().requires_grad_()
        out_BX, out = alone(x_BX), network(part_BX)
        out_BX.backward(grad_BX)
        out.backward(grad_BX[share.start : share.stop])
        assert x_BX.grad is not None
        assert part_BX.grad is not None
        differences += [_largest(out - out_BX[share.start : share.stop])]
        differences += [_largest(part_BX.grad - x_BX.grad[share.start : share.stop])]
    weights = [group.sum(parameter.grad.clone()) for parameter in network.parameters() if parameter.grad is not None]
    differences += [
        _largest(a - b.grad) for a, b in zip(weights, alone.parameters(), strict=True) if b.grad is not None
    ]
    state = network.state_dict()
    differences += [_largest(state[f"0.{name}"] - tensor) for name, tensor in alone.state_dict().items()]
    return differences


def train(
    group: Group,
    config: dict[str, Any],
    stop_after: int | None = None,
    stops: int = 0,
    bucket_bytes: int | None = None,
    fails: str = "",
    rank: int = 0,
    publication: int = 0,
    late: int | None = None,
    hosts: dict[str, str] | None = None,
    progress: Progress = no_progress,
    ahead: bool = True,
    slow: int | None = None,
) -> dict[str, Any]:
    """Train a run, or until rank ``stops`` is asked to stop; its result, and digests of what it saved.

    Args:
        ahead: whether it looks a batch ahead.
        fails: what of ``_PARTS`` fails on a rank in its publication of that number, from 1.
        late: the rank that never sees a new entry of a store's log in a listing, as of a shared file system.
        hosts: by name, the cache of each rank's host.
        slow: the rank whose disk is.
    """
    _small_buckets(bucket_bytes)
    if late == group.rank:
        known = obstore.list
        obstore.list = lambda *_, **__: iter(())  # type: ignore[assignment]
        _undo.append(lambda: setattr(obstore, "list", known))
    if hosts is not None:
        _on_host(*list(hosts.items())[group.rank])
    if not ahead:
        _undo.append(lambda: setattr(training, "look_ahead", look_ahead))
        training.look_ahead = lambda batches, table: batches
    if slow == group.rank:
        _slow_disk()
    if fails and group.rank == rank:
        _fail(fails, publication)
    run = Run(parse(RunConfig, config), models.build, group=group, progress=progress)
    if stop_after is not None:
        _stop_after(stop_after, group.rank == stops)
    try:
        result = run.train()
    except Interrupted as stopped:
        return {"stopped": str(stopped), "files": _saved(run.folder)}
    finally:
        after()
    return {"result": result, "digest": digest(group, config)}


def bars(group: Group, config: dict[str, Any], stop_after: int | None = None) -> list[list[Any]]:
    """Train a run, or until it is stopped; the label, total and rows of each bar that rank 0 shows."""
    shown = Bars()
    train(group, config, stop_after, progress=shown)
    return [[bar.label, bar.total, bar.rows] for bar in shown.bars]


class Bars(Progress):
    """Keeps how far bars came."""

    def __init__(self) -> None:
        self.bars: list[_Bar] = []

    def __call__(self, label: str, total: int | None) -> Bar:
        self.bars.append(_Bar(label, total))
        return self.bars[-1]


class _Bar(Bar):
    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.rows = label, total, 0

    def resume(self, done: int) -> None:
        self.rows = done

    def advance(self, rows: int) -> None:
        self.rows += rows


def digest(group: Group, config: dict[str, Any]) -> dict[str, str]:
    """Sha256 of everything in a run's last checkpoint, as this group loads it."""
    _, trainer = _restored(group, config)
    model = trainer.model
    tensors = dict(model.dense_state())
    for name, tensor in model.table.state_dict().items():
        own = name.startswith("_")
        tensors[f"table.{name}"] = tensor if own else torch.cat(group.gather(tensor))
    for name, tensor in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{name}.{key}": torch.as_tensor(value) for key, value in tensor.items()}
    return {name: _sha256(tensor) for name, tensor in tensors.items()}


def publish(
    group: Group,
    config: dict[str, Any],
    store: str,
    base: str | None = None,
    bucket_bytes: int | None = None,
    encoding: str | None = None,
    full: int | None = None,
) -> str:
    """Publish what is in a run's last checkpoint, as a delta of ``base`` if there is one; the version's id.

    Args:
        full: the rank whose disk is full.
    """
    _small_buckets(bucket_bytes)
    if full == group.rank:
        _full_disk()
    try:
        run, trainer = _restored(group, config)
        there = Store(store)
        change = None if base is None else Change(base=there.open(base))
        return there.publish(run._bundle(trainer), encoding=encoding, change=change, group=group).id
    finally:
        after()


def publish_moved(group: Group, config: dict[str, Any], store: str, moved: list[bool]) -> Any:
    """Publish a run's last checkpoint, move all rows of some ranks, and publish that; the rows of the delta.

    Returns:
        ``"base"`` where nothing was published, ``"whole"`` where all was.
    """
    run, trainer = _restored(group, config)
    there = Store(store)
    base = there.publish(run._bundle(trainer), group=group)
    trainer.model.table.weight += float(moved[group.rank])
    version = there.publish(run._bundle(trainer), change=Change(base=base, smallest=True), group=group)
    there.verify(version.id)
    if version is base:
        return "base"
    return "whole" if version.delta is None else version.delta.rows


def collect(group: Group, log: str, features: list[str]) -> dict[str, Any]:
    """The vocabulary of a log, as each rank has it."""
    schema = Schema(features=tuple(Feature(name=name) for name in features))
    found = Vocabulary.collect(ParquetLog(log, schema), group=group)
    return {name: {"kind": of.kind, **of.table().to_pydict()} for name, of in found.items()}


def die(group: Group) -> None:
    """Rank 1 dies."""
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.barrier()


def hang(group: Group) -> None:
    """Rank 1 is busy with something else."""
    if group.rank == 1:
        time.sleep(4)
        return
    group.barrier()


def fail(group: Group) -> None:
    """Rank 1 finds a row that can't be used."""
    if group.rank == 1:
        raise DataError("row 7", expected="a label", found="none")
    group.barrier()


def lead(group: Group, error: str) -> Any:
    """Rank 0 does something for all, or fails to."""

    def work() -> Any:
        _raise(error)
        return {"done": {group.rank} if error == "a set" else group.rank}

    return group.lead(work)


def each(group: Group, error: str) -> Any:
    """Every rank does something of its own; those from 1 may fail, each with an error of its own."""

    def work() -> Any:
        own = dict(enumerate(error.split(", "), start=1)).get(group.rank, "")
        _raise(own)
        return {"done": {group.rank} if own == "a set" else group.rank}

    return group.each(work)


def _raise(error: str) -> None:
    if error == "DataError":
        raise DataError("row 7", expected="a label", found="none", do="drop it")
    if error == "OSError":
        raise OSError(errno.ENOSPC, "disk full", "table")
    if error == "KeyError":
        raise KeyError("row 7")


def told(group: Group, by: int) -> Any:
    """A rank tells what JSON can't hold: rank 0 to all, another as each does."""
    value: Any = {group.rank} if group.rank == by else group.rank
    return group.tell(value) if by else group.told(value)


def talk(group: Group) -> dict[str, Any]:
    """Everything that ranks tell each other."""
    rank = torch.tensor([group.rank])
    sent = [torch.full((group.rank + 1, 2), 10 * group.rank + to, dtype=torch.bfloat16) for to in range(group.world)]
    return {
        "sum": group.sum(rank.float().clone()).tolist(),
        "any": group.any(group.rank == 1, False),
        "exchange": [part.tolist() for part in group.exchange(sent)],
        "gather": [part.tolist() for part in group.gather(torch.arange(group.rank))],
        "collect": [part.tolist() for part in group.collect(rank)],
        "told": group.told({"from": group.rank}),
        "tell": group.tell(f"rank {group.rank}"),
        "share": list(group.share(10)),
    }


def nothing(group: Group) -> int:
    """Come and go."""
    return group.world


def _restored(group: Group, config: dict[str, Any]) -> tuple[Run, Trainer]:
    run = Run(parse(RunConfig, config), models.build, group=group)
    exact = run.files.exact_tokens()
    assert exact is not None
    trainer = Trainer(
        run.build(exact), run.config.training, run.folder, identity=run.config.identity(run.start), group=group
    )
    trainer._load_last(trainer.checkpoints.names()[-1])
    return run, trainer


def _stop_after(rows: int, here: bool) -> None:
    """Ask this process to stop, as Ctrl-C does, once so many rows were trained."""
    known, done = Trainer._step, 0

    def step(self: Trainer, batch: Any, total: int) -> Tensor:
        nonlocal done
        out = known(self, batch, total)
        done += batch.step_rows
        if here and done >= rows:
            os.kill(os.getpid(), signal.SIGINT)
        return out

    Trainer._step = step  # type: ignore[method-assign]
    _undo.append(lambda: setattr(Trainer, "_step", known))


def _on_host(name: str, cache: str) -> None:
    """Let this process be on another machine, for what it can tell: what it made itself is all it sees of a store."""
    known = socket.gethostname
    if name != "here":
        seen = Path.is_dir
        Path.is_dir = lambda path, **how: ".tmp-" not in str(path) and seen(path, **how)  # type: ignore[method-assign]
        _undo.append(lambda: setattr(Path, "is_dir", seen))
    socket.gethostname = lambda: name
    os.environ["EMBSTORE_CACHE"] = cache
    _undo.append(lambda: setattr(socket, "gethostname", known))
    _undo.append(lambda: os.environ.pop("EMBSTORE_CACHE") and None)


def _saved(folder: Path) -> dict[str, bool]:
    """Files of the last checkpoint as it lies there now, and whether each is whole."""
    last = Checkpoints(folder / "checkpoints").names()[-1]
    where = folder / "checkpoints" / last
    promised = json.loads((where / "state.json").read_text())["files"]
    return {name: sha256_file(where / name).sha256 == of["sha256"] for name, of in promised.items()}


def _slow_disk() -> None:
    known = checkpoints.write_tensors

    def write(*arguments: Any) -> Any:
        time.sleep(1)
        return known(*arguments)

    checkpoints.write_tensors = write  # type: ignore[attr-defined]
    _undo.append(lambda: setattr(checkpoints, "write_tensors", known))


def _full_disk() -> None:
    known = format.SafetensorsWriter

    def write(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    format.SafetensorsWriter = write  # type: ignore[assignment, misc]
    _undo.append(lambda: setattr(format, "SafetensorsWriter", known))


def _full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "part")


def _refuse() -> None:
    raise StoreError("a part", found="refused")


def _damage() -> None:
    raise CorruptVersionError("a part", expected="others", found="these bytes")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_PARTS: dict[str, tuple[Any, str, Callable[[], None]]] = {
    "bundle": (RunFolder, "lineage", _full),
    "begin": (Log, "state", _refuse),
    "base": (Version, "check", _damage),
    "stage": (LocalPlace, "stage", _full),
    "folders": (format, "_make_folders", _full),
    "compare": (format, "changed_rows", _refuse),
    "die": (format, "changed_rows", _die),
    "bucket": (format, "SafetensorsWriter", _full),
    "delta": (delta, "write_tensors", _full),
    "schema": (format, "write_small", _full),
    "keep": (LocalPlace, "keep", _full),
    "commit": (Log, "add", _refuse),
    "open": (Store, "_open", _refuse),
    "promote": (Store, "promote", _refuse),
}


def _fail(part: str, publication: int) -> None:
    """Let a part of a publication fail in this process, and of no other."""
    (owner, name, fail), publish, count = _PARTS[part], Publisher._publish, 0
    known, within = getattr(owner, name), name == "promote"

    def counted(self: Publisher, restored: bool) -> Version:
        nonlocal count, within
        count, within = count + 1, True
        try:
            return publish(self, restored)
        finally:
            within = name == "promote"

    def failing(*arguments: Any, **named: Any) -> Any:
        if within and count == publication:
            fail()
        return known(*arguments, **named)

    Publisher._publish = counted  # type: ignore[method-assign]
    setattr(owner, name, failing)
    _undo.append(lambda: setattr(Publisher, "_publish", publish))
    _undo.append(lambda: setattr(owner, name, known))


def _small_buckets(nbytes: int | None) -> None:
    known = format.BUCKET_BYTES
    format.BUCKET_BYTES = nbytes or known
    _undo.append(lambda: setattr(format, "BUCKET_BYTES", known))


def _tokens(
    features: list[Mapping[str, Any]], lists: list[str], rows: int, generator: torch.Generator
) -> FeatureTokens:
    columns: dict[str, tuple[Tensor, Tensor | None]] = {}
    for feature in features:
        offsets, count = None, rows
        if feature["name"] in lists:
            lengths = torch.randint(0, 4, (rows,), generator=generator)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            count = int(offsets[-1])
        columns[feature["name"]] = torch.randint(0, 9, (count,), generator=generator), offsets
    return FeatureTokens.concatenate(columns, rows)


def _within(rows: Tensor | None, shard: range) -> Tensor:
    assert rows is not None
    return rows[(rows >= shard.start) & (rows < shard.stop)]


def _largest(difference: Tensor) -> float:
    return float(difference.detach().double().abs().max()) if difference.numel() else 0.0


def _apart(found: Tensor, expected: Tensor) -> float:
    return _largest((found - expected) / (1 + expected.abs()))


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def files_of(store: Path, version: str) -> dict[str, bytes]:
    """A version's files by name, but for the manifest."""
    folder = store / "versions" / version
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["manifest.json"]
    return files

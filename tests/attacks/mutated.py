"""Opens a store over and over, each time with one file mutated: ``python mutated.py FOLDER COUNT SEED``.

Prints, as JSON, how many were refused, how many were harmless, and each that did anything but that: another exception
than ``StoreError``, more than a second, more than 512 MiB of further address space.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embstore.errors import SchemaError, StoreError
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Store, Version
from embstore.store.local import LocalFiles
from embstore.vocabulary import FeatureValues, Vocabulary

MEMORY = 512 << 20
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 8, 9, 2**31, 2**48, 2**62, 2**63, 2**64, -(2**63), 10**400, 0.0, 0.5, 1e308),
    *("", "x", "..", "/", "a\0b", "\ud7ff", "é" * 300, "x" * 100_000, "20260101T000000Z-00000000", "0" * 64, "float64"),
    *([], [[]], [0], [1, 2], [None] * 1000, {}, {"x": {}}, {"": 1}, [0] * 33, [2**40] * 3, ["user"], ["network.w"]),
]


class _Table:
    """Eight shared rows of two numbers and an exact block of three."""

    dim, num_rows, dtype = 2, 11, torch.float32

    def describe(self) -> dict[str, Any]:
        user = {"name": "user", "lookups": 2, "pooling": "sum", "exact": False, "rows": [{"base": 0, "size": 8}] * 2}
        day = {"name": "day", "lookups": 1, "pooling": "mean", "exact": True, "rows": [{"base": 8, "size": 3}]}
        return {"hash_spec": 1, "seed": 0, "hashed_rows": 8, "num_tables": 1, "features": [user, day]}

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        return torch.arange(22.0).reshape(11, 2)[start:stop]

    def exact_tokens(self) -> dict[str, torch.Tensor]:
        return {"day": torch.tensor([1, 5])}


def bundle() -> Bundle:
    """What is published, then mutated."""
    return Bundle(
        table=_Table(),
        schema=Schema(features=(Feature(name="user", lookups=2), Feature(name="day", exact=True, pooling="mean"))),
        dense_state={"network.w": torch.ones(3), "network.n": torch.tensor(4)},
        model={"name": "dnn", "settings": {"hidden": [4]}, "dense_width": 0, "widths": [4, 2]},
        metrics={"auc": 0.75},
        lineage={"config": {"seed": 1}},
        columns={"user": "int64"},
        vocabulary=Vocabulary(
            {
                "user": FeatureValues.of("user", [1, 5, 9], count=[1, 2, 3], kept=[True, False, True]),
                "day": FeatureValues.of("day", ["fri", "mon"], count=[1, 2]),
            }
        ),
    )


def mutate_bytes(data: bytes, choice: random.Random) -> bytes:
    """Flip, drop, insert, repeat or cut a few bytes."""
    out = bytearray(data)
    for _ in range(choice.choice((1, 1, 1, 2, 5))):
        at = choice.randrange(len(out) + 1)
        size = choice.choice((1, 1, 2, 8, 40))
        kind = choice.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << choice.randrange(8)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = choice.choice(
                (b"\0", b"\xff", b'"', b"[", b"{", b"}", b",", b"9" * size, b"-", b"e99", b"\\u")
            )
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            out[at : at + size] = choice.randbytes(size)
        else:
            del out[at:]
    return bytes(out)


def mutate_json(data: bytes, choice: random.Random) -> bytes:
    """Put another value, key, or key twice in one place; or many levels, or a long list."""
    body = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(body)
    holder, key = choice.choice(places)
    kind, value = choice.randrange(7), choice.choice(VALUES)
    if kind == 0 or (kind < 4 and isinstance(holder, list)):
        del holder[key]
    elif kind == 1:
        holder[choice.choice((str(value)[:200], key + "x", key.upper(), key + "\0"))] = holder.pop(key)
    elif kind == 2:
        other, name = choice.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 3:
        text = json.dumps(body)
        mark = json.dumps(key) + ": "
        return text.replace(mark, f"{mark}{json.dumps(value)}, {mark}", 1).encode()
    elif kind == 4:
        holder[key] = "@"
        depth = choice.choice((10, 900, 5000, 100_000))
        opening, closing = choice.choice((("[", "]"), ('{"a":', "}")))
        deep = opening * depth + "1" + closing * choice.choice((depth, 0))
        return json.dumps(body).replace('"@"', deep, 1).encode()
    else:
        holder[key] = value
    return json.dumps(body).encode()


def mutate(data: bytes, choice: random.Random) -> bytes:
    """Either."""
    return (mutate_json if choice.random() < 0.6 else mutate_bytes)(data, choice)


class Mutations:
    """A store of two versions with an alias, and its files as they were."""

    def __init__(self, root: Path) -> None:
        self.root, store = root, Store(root)
        self.version = store.publish(bundle())
        store.promote(store.publish(bundle()).id)
        self.folder = self.version.folder
        self.entries = {path: path.read_bytes() for path in sorted((root / "log").iterdir())}
        self.files = {name: (self.folder / name).read_bytes() for name in (*self.version.files, "manifest.json")}

    def manifest(self, choice: random.Random) -> Callable[[], Any]:
        """A manifest that the log agrees with."""
        return self._version({}, mutate(self.files["manifest.json"], choice))

    def compat(self, choice: random.Random) -> Callable[[], Any]:
        """A ``compat.json`` that the manifest agrees with."""
        return self._version({"compat.json": mutate(self.files["compat.json"], choice)})

    def schema(self, choice: random.Random) -> Callable[[], Any]:
        """A schema that the manifest agrees with."""
        return self._version({"schema.yaml": mutate_bytes(self.files["schema.yaml"], choice)})

    def header(self, choice: random.Random) -> Callable[[], Any]:
        """A safetensors file with another header, of its own length or the old one."""
        name = choice.choice([name for name in self.files if name.endswith(".safetensors")])
        data = self.files[name]
        end = 8 + int.from_bytes(data[:8], "little")
        header = mutate(data[8:end].rstrip(), choice)
        length = choice.choice((len(header), len(header), len(header), end - 8, choice.randrange(2**64)))
        return self._version({name: (length.to_bytes(8, "little") + header + data[end:])[: 1 << 20]})

    def entry(self, choice: random.Random) -> Callable[[], Any]:
        """A log entry."""
        path = choice.choice(list(self.entries))
        path.write_bytes(mutate(self.entries[path], choice))

        def read() -> None:
            try:
                store = Store(self.root)
                store.versions(), store.aliases()
                store.open("latest")
                store.open("production")
            finally:
                path.write_bytes(self.entries[path])

        return read

    def unchanged(self) -> Callable[[], Any]:
        """The version as it was published."""
        return self._version({})

    def _version(self, changed: dict[str, bytes], manifest: bytes | None = None) -> Callable[[], Any]:
        if manifest is None:
            body = json.loads(self.files["manifest.json"])
            for name, data in changed.items():
                body["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest = json.dumps(body).encode()
        files = {**changed, "manifest.json": manifest}
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        digest = hashlib.sha256(manifest).hexdigest()

        def read() -> None:
            try:
                version = Version.open(LocalFiles(self.folder), version=self.version.id, digest=digest)
                version.verify()
                version.table.gather(torch.arange(version.table.num_rows))
                for feature in version.schema.features:
                    with suppress(SchemaError):  # of a transform that takes no such value, or of a kind of column
                        version.lookup(feature.name, [1, 5, None])
                        version.status(feature.name, np.arange(3, dtype=np.uint64))
                version.dense_state(), version.table.describe(), version.table.exact_tokens()
            finally:
                for name in files:
                    (self.folder / name).write_bytes(self.files[name])

        return read


def main(folder: str, count: int, seed: int) -> None:
    """Mutate, open, and say what came of it."""
    torch.set_num_threads(1)
    mutations, choice = Mutations(Path(folder)), random.Random(seed)
    kinds = (mutations.manifest, mutations.compat, mutations.schema, mutations.header, mutations.entry)
    for kind in kinds:  # what is imported late, and threads started late, are there now
        kind(random.Random(0))
        for name, data in mutations.files.items():
            (mutations.folder / name).write_bytes(data)
    mutations.unchanged()()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    ends: Counter[str] = Counter()
    wrong, slowest = [], 0.0
    for number in range(count):
        kind = kinds[number % len(kinds)]
        read = kind(choice)
        start = time.process_time()
        try:
            read()
            ends["harmless"] += 1
        except StoreError as error:
            ends["refused"] += 1
            if len(str(error)) > 2000:
                wrong.append(f"{kind.__name__} {number}: a message of {len(str(error)):,} characters: {error!s:.200}")
        except BaseException as error:
            wrong.append(f"{kind.__name__} {number}: {type(error).__name__}: {error!s:.200}")
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        if seconds > 1:
            wrong.append(f"{kind.__name__} {number}: {seconds:.1f} s")
    print(json.dumps({**ends, "wrong": wrong, "slowest": slowest}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

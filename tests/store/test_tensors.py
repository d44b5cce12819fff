"""Safetensors files; the judge is the safetensors library, both ways."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from embstore.errors import StoreError
from embstore.store import SafetensorsWriter, open_tensors, sha256_file, write_tensors
from embstore.store.mapping import Region
from embstore.store.tensors import DTYPES

SHAPES = [(), (0,), (1,), (7,), (0, 4), (3, 0), (5, 3), (2, 3, 4)]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits: NaNs with payloads, infinities and subnormal numbers are among them."""
    random = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=random).bool()
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=random).view(dtype).reshape(shape)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_libraries_read_both_files(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = random_tensor(dtype, shape)
    write_tensors(tmp_path / "ours", {"x": tensor})
    save_file({"x": tensor}, tmp_path / "theirs")
    for read in (open_tensors, load_file):
        for name in ("ours", "theirs"):
            assert same_bits(read(tmp_path / name)["x"], tensor), (read, name)


@given(
    specs=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.sampled_from(SHAPES), st.integers(0, 99)),
        max_size=6,
    ),
    metadata=st.dictionaries(st.sampled_from("abc"), st.text(st.characters(codec="utf-8"), max_size=4)),
)
def test_any_tensors_come_back(
    specs: dict[str, tuple[torch.dtype, tuple[int, ...], int]],
    metadata: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    tensors = {name: random_tensor(*spec) for name, spec in specs.items()}
    assert write_tensors(path, tensors, metadata=metadata) == sha256_file(path)
    ours, theirs = open_tensors(path), load_file(path)
    assert ours.keys() == theirs.keys() == tensors.keys()
    assert all(same_bits(ours[name], tensors[name]) and same_bits(theirs[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata


def test_pieces_make_the_same_file_as_the_whole(tmp_path: Path) -> None:
    rows, momentum = random_tensor(torch.bfloat16, (10, 3)), random_tensor(torch.float64, (10,))
    whole = write_tensors(tmp_path / "whole", {"rows": rows, "momentum": momentum})
    specs = {"rows": (torch.bfloat16, (10, 3)), "momentum": (torch.float64, (10,))}
    with SafetensorsWriter(tmp_path / "pieces", specs) as writer:
        assert writer.names == ("momentum", "rows")  # the widest first
        for start, stop in ((0, 4), (4, 4), (4, 10)):
            writer.write("momentum", momentum[start:stop])
        for start in range(10):
            writer.write("rows", rows[start : start + 1])
    assert writer.close() == whole == sha256_file(tmp_path / "pieces")
    data = (tmp_path / "whole").read_bytes()
    assert data == (tmp_path / "pieces").read_bytes()
    assert whole == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("alignment", [8, 64, 16384])
def test_data_starts_where_asked(alignment: int, tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x", {"x": (torch.uint8, (3,))}, alignment=alignment) as writer:
        writer.write("x", torch.tensor([1, 2, 3], dtype=torch.uint8))
    data = (tmp_path / "x").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % alignment == 0
    assert data[-3:] == b"\1\2\3"


def test_a_transposed_tensor_is_written_as_it_reads(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    write_tensors(tmp_path / "x", {"x": tensor})
    assert torch.equal(load_file(tmp_path / "x")["x"], tensor)


def test_numbers_across_their_size_are_read(tmp_path: Path) -> None:
    """The format allows it, though no library writes it: three bytes, then a float."""
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"abc" + np.float32(1.5).tobytes())
    assert open_tensors(tmp_path / "x")["b"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("name", "chunk", "message"),
    [
        ("y", torch.zeros(1, 2), "'x'"),
        ("x", torch.zeros(1, 2).half(), "float16"),
        ("x", torch.zeros(1, 3), r"\[1, 3\]"),
        ("x", torch.zeros(2), r"\[2\]"),
        ("x", torch.zeros(5, 2), "8 more"),
        ("x", torch.zeros(3, 2), "2 numbers missing"),
    ],
)
def test_what_was_not_announced_is_refused_and_leaves_no_file(
    name: str, chunk: torch.Tensor, message: str, tmp_path: Path
) -> None:
    def write() -> None:
        with SafetensorsWriter(tmp_path / "x", {"x": (torch.float32, (4, 2))}) as writer:
            writer.write(name, chunk)

    with pytest.raises(StoreError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(StoreError, match="a new file"):
        write_tensors(tmp_path / "x", {"x": torch.zeros(1)})
    assert (tmp_path / "x").read_text() == "mine"


def test_a_dtype_without_a_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="complex64"):
        write_tensors(tmp_path / "x", {"x": torch.zeros(1, dtype=torch.complex64)})
    assert list(tmp_path.iterdir()) == []


def test_writing_to_a_mapped_tensor_stays_private(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "x", {"x": torch.zeros(4)})
    tensor = open_tensors(tmp_path / "x")["x"]
    tensor.add_(1)
    assert tensor.tolist() == [1, 1, 1, 1]
    assert sha256_file(tmp_path / "x") == digest
    assert open_tensors(tmp_path / "x")["x"].tolist() == [0, 0, 0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapping_holds_no_descriptor_and_goes_with_its_last_tensor(tmp_path: Path) -> None:
    write_tensors(tmp_path / "mapped.safetensors", {"x": torch.arange(4.0), "y": torch.ones(2)})
    before = len(os.listdir("/proc/self/fd"))
    row = open_tensors(tmp_path / "mapped.safetensors")["x"][2:3]
    assert len(os.listdir("/proc/self/fd")) == before
    assert "mapped.safetensors" in Path("/proc/self/maps").read_text()
    (tmp_path / "mapped.safetensors").unlink()
    assert row.tolist() == [2]
    del row
    gc.collect()
    assert "mapped.safetensors" not in Path("/proc/self/maps").read_text()


PAGE = os.sysconf("SC_PAGE_SIZE")


@given(
    spans=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 64, PAGE, PAGE + 8, 2 * PAGE]),
            st.sampled_from([0, 1, 100, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE]),
        ),
        max_size=6,
    ),
    seed=st.integers(0, 2**32),
)
def test_a_region_reads_as_its_spans_joined(
    spans: list[tuple[int, int]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Offset and length of each span: on pages, across them, and ending within one that the next span goes on in."""
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("region")
    region, joined = Region(sum(nbytes for _, nbytes in spans)), b""
    for number, (offset, nbytes) in enumerate(spans):
        data = random.bytes(offset + nbytes + 5)
        path = folder / f"{number}"
        path.write_bytes(data)
        with path.open("rb") as file:
            region.place(len(joined), file.fileno(), offset, nbytes)
        joined += data[offset : offset + nbytes]
    assert region.bytes().numpy().tobytes() == joined


def test_a_span_outside_its_file_or_region_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    with (tmp_path / "x").open("rb") as file:
        for at, offset, nbytes in ((0, 0, 6), (0, 4, 2), (3, 0, 2), (-1, 0, 1)):
            with pytest.raises(StoreError, match="a span inside"):
                Region(4).place(at, file.fileno(), offset, nbytes)


def test_numbers_that_change_as_they_are_written(tmp_path: Path) -> None:
    """The sha256 is of what lies in the file, and it is no error."""
    rows_ND, stop = torch.zeros(1 << 20, 4), threading.Event()

    def change() -> None:
        while not stop.is_set():
            rows_ND.add_(1)

    trainer = threading.Thread(target=change)
    trainer.start()
    try:
        for number in range(5):
            path = tmp_path / str(number)
            digest = write_tensors(path, {"rows": rows_ND})
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest.sha256
    finally:
        stop.set()
        trainer.join()

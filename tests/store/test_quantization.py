"""Rows stored in fewer bits: what is read is within half a step of what was published, and the loss is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embstore.errors import StoreError
from embstore.store import Bundle, Store
from embstore.store.quantization import decode, encode, stored_width

ROWS = st.integers(1, 8).flatmap(
    lambda half: arrays.arrays(
        np.float32, st.tuples(st.integers(0, 20), st.just(2 * half)), elements=st.floats(-1e4, 1e4, width=32)
    )
)


@pytest.mark.parametrize(("encoding", "steps"), [("int8", 255), ("int4", 15)])
@given(rows=ROWS)
def test_quantised_rows_are_within_half_a_step(encoding: str, steps: int, rows: np.ndarray) -> None:
    stored_NS = encode(torch.from_numpy(rows), encoding)
    assert stored_NS.dtype == torch.uint8
    assert stored_NS.shape == (len(rows), stored_width(encoding, rows.shape[1]))
    found = decode(stored_NS, encoding, rows.shape[1]).double().numpy()
    low, high = rows.min(axis=1, initial=np.inf), rows.max(axis=1, initial=-np.inf)
    step = (high - low).astype(np.float64) / steps
    # int4 keeps step and smallest number as float16: 2^-11 of them may be lost, and 2^-24 for the smallest.
    slack = (
        1e-3 * (np.abs(rows).max(axis=1, initial=0) + 1e-6)
        if encoding == "int4"
        else 1e-5 * np.abs(rows).max(axis=1, initial=0)
    )
    bound = step / 2 + slack + (step * steps * 2**-10 if encoding == "int4" else 0) + 1e-6
    assert (np.abs(found - rows) <= bound[:, None]).all()


@pytest.mark.parametrize("encoding", ["int8", "int4", "float16", "bfloat16"])
def test_a_version_is_stored_in_fewer_bits(
    encoding: str, make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embstore.store.format.BUCKET_BYTES", 1 << 10)
    bundle = make_bundle(rows=1500, dim=16)
    store = Store(tmp_path)
    version = store.publish(bundle, encoding=encoding)
    store.verify()
    exact_ND, found_ND = bundle.table.read_rows(0, 1500), version.table.read_rows(0, 1500)
    loss = version.manifest["table"]["loss"]
    change_ND = found_ND.double() - exact_ND.double()
    assert loss["largest"] == pytest.approx(float(change_ND.abs().max()))
    assert loss["relative"] == pytest.approx(float(change_ND.norm() / exact_ND.double().norm()))
    assert 0 < loss["relative"] < 0.1
    rows = torch.tensor([7, 1499, 0, 7])
    assert torch.equal(version.table.gather(rows), found_ND[rows])
    assert torch.equal(version.table.read_rows(100, 900), found_ND[100:900])
    whole, small = (
        sum(digest.bytes for name, digest in each.files.items() if name.startswith("table/"))
        for each in (store.publish(bundle), version)
    )
    assert small < 0.6 * whole + 300 * len(version.files)


def test_what_cannot_be_quantised(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="even dim"):
        store.publish(make_bundle(dim=3), encoding="int4")
    with pytest.raises(StoreError, match="int8, int4"):
        store.publish(make_bundle(), encoding="int2")
    bundle = make_bundle()
    bundle.table.read_rows(0, 40)[3, 1] = float("inf")
    with pytest.raises(StoreError, match="finite"):
        store.publish(bundle, encoding="int8")
    assert store.versions() == []

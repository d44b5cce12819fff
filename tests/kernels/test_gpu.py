"""The Triton kernel against the float64 judge and the reference; under Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from judge import (
    DTYPES,
    EXACT,
    FEATURES,
    LISTS,
    OPTIMIZERS,
    RATES,
    Batch,
    exact_tokens,
    feature_tokens,
    int64,
)

from embstore import hashing
from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import KernelError
from embstore.kernels import TableOptimizer, gpu
from embstore.kernels.optimizer import round_stochastically
from embstore.kernels.reference import ReferenceKernel
from embstore.schema import Feature

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton's functions are first loaded
pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few hits make a row heavy here, so that both ways of summing are taken by small batches."""
    monkeypatch.setattr(gpu, "HEAVY", 8)


def _tokens(batch: Batch) -> FeatureTokens:
    return feature_tokens(batch).to(DEVICE)


def _batch(rows: int, seed: int, most: int = 4, values: int = 12) -> Batch:
    generator = np.random.default_rng(seed)
    known = [*EXACT["hour"], *EXACT["colours"]]

    def tokens(count: int) -> list[int]:
        drawn = generator.integers(0, values, count)
        return [int(t) if t < values // 2 else known[t % len(known)] for t in drawn]

    return {
        f.name: [tokens(int(generator.integers(0, most + 1)) if f.name in LISTS else 1) for _ in range(rows)]
        for f in FEATURES
    }


def _table(
    optimizer: str, dtype: torch.dtype = torch.float32, dim: int = 4, features: list[Feature] | None = None
) -> UnifiedEmbedding:
    """A table with the Triton kernel."""
    table = UnifiedEmbedding(
        FEATURES if features is None else features,
        30,
        dim,
        num_tables=2,
        exact_tokens=exact_tokens(),
        optimizer=TableOptimizer(name=optimizer, learning_rate=RATES[optimizer], eps=1e-3),  # type: ignore[arg-type]
        dtype=dtype,
        init_std=1.0,
        kernel="reference",
        seed=11,
        device=DEVICE,
    )
    gpu.check(table.optimizer, dtype, table.weight.device)
    table.kernel = gpu.GpuKernel()
    return table


def _reference(table: UnifiedEmbedding) -> UnifiedEmbedding:
    """The same table on CPU with the reference kernel."""
    return deepcopy(table).cpu()


def _step(table: UnifiedEmbedding, tokens: FeatureTokens, grad_BW: torch.Tensor) -> torch.Tensor:
    out_BW = table(tokens.to(table.weight.device))
    out_BW.backward(grad_BW.to(table.weight.device))
    return out_BW.detach().cpu()


def _randn(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _close(table: UnifiedEmbedding, other: UnifiedEmbedding) -> None:
    """Equal to float32; narrow rows to a spacing, as a sum in another order may be rounded to the other side."""
    narrow = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[table.dtype]
    for name, tensor in table.named_buffers():
        tolerance = narrow if name == "weight" else 1e-5
        expected = other.get_buffer(name).float()
        torch.testing.assert_close(tensor.float().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_follows_the_reference(optimizer: str, dtype: torch.dtype) -> None:
    table = _table(optimizer, dtype)
    reference = _reference(table)
    tokens, grad_BW = _tokens(_batch(6, 0)), _randn(6, table.width)
    assert torch.equal(_step(table, tokens, grad_BW), _step(reference, tokens, grad_BW))
    _close(table, reference)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_the_hash_spec_bit_for_bit(dtype: torch.dtype) -> None:
    """Each row holds its own number, so that the output says which rows were read."""
    features = [Feature(name=f"f{i}", lookups=2) for i in range(3)]
    table = UnifiedEmbedding(features, 254, 1, num_tables=2, dtype=dtype, kernel="reference", seed=5, device=DEVICE)
    table.kernel = gpu.GpuKernel()
    table.weight.copy_(torch.arange(254)[:, None])
    tokens_N = np.random.default_rng(0).integers(0, 2**64, 300, dtype=np.uint64)
    tokens_N[:6] = 0, 1, 2**63 - 1, 2**63, 2**64 - 1, hashing.MISSING_TOKEN
    column = torch.from_numpy(tokens_N.view(np.int64)), None
    tokens = FeatureTokens.concatenate({f.name: column for f in features}, len(tokens_N))
    out_BL = table.eval()(tokens.to(DEVICE)).cpu().numpy()
    for i, lookup in enumerate(table.plan.lookups):
        rows_N = hashing.rows(tokens_N, lookup.salt, lookup.size) + lookup.base
        assert np.array_equal(out_BL[:, i], rows_N % 256)


@pytest.mark.parametrize("num_rows", [1, 1000, 2**31 + 11, 2**33 + 5, 2**62])
def test_rows_of_tables_of_any_size(num_rows: int) -> None:
    """Sizes no table here could have: the function that finds the rows of an update, on its own."""
    tokens_N = np.random.default_rng(1).integers(0, 2**64, 64, dtype=np.uint64)
    tokens_N[:3] = 0, 2**63, 2**64 - 1
    salt, base = hashing.salt("größe", 3, 7), 2**40
    record_LX = int64([salt, base, num_rows, 0, 0, 0, 0, 0, 0, 64, 0, 2**64 - 1]).to(DEVICE)
    row_T, slot_T = (torch.empty(64, dtype=torch.int64, device=DEVICE) for _ in range(2))
    source = record_LX, record_LX, torch.from_numpy(tokens_N.view(np.int64)).to(DEVICE), None
    settings = {"STEPS": 0, "LOOKUPS": 3, "BLOCK": 64, "enable_fp_fusion": False}
    gpu.functions().find_hits[(1,)](source, (row_T, slot_T, None), 1, 64, **settings)
    assert np.array_equal(row_T.cpu().numpy(), hashing.rows(tokens_N, salt, num_rows) + base)
    assert slot_T.tolist() == list(range(0, 192, 3))


@pytest.mark.parametrize("dim", [1, 6, 20, 128, 256])
def test_any_dim(dim: int) -> None:
    table = _table("rowwise_adagrad", dim=dim)
    reference = _reference(table)
    tokens, grad_BW = _tokens(_batch(3, 2)), _randn(3, table.width)
    assert torch.equal(_step(table, tokens, grad_BW), _step(reference, tokens, grad_BW))
    _close(table, reference)


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_batches_and_empty_lists(rows: int) -> None:
    features = [f for f in FEATURES if f.name in LISTS]
    table = _table("adam", features=features)
    before = table.weight.clone()
    columns = {name: (torch.empty(0, dtype=torch.int64), torch.zeros(rows + 1, dtype=torch.int64)) for name in LISTS}
    out_BW = _step(table, FeatureTokens.concatenate(columns, rows), torch.ones(rows, table.width))
    assert torch.equal(out_BW, torch.zeros(rows, table.width))
    assert torch.equal(table.weight, before)
    none = UnifiedEmbedding([], 0, 4, kernel="reference", device=DEVICE)
    none.kernel = gpu.GpuKernel()
    assert none(FeatureTokens.concatenate({}, rows)).shape == (rows, 0)


def test_more_features_than_the_table_has_and_lists_of_one() -> None:
    """A list feature may come without offsets when every list has one value; others are left aside."""
    table = _table("sgd", features=[Feature(name="genres", pooling="mean"), Feature(name="user")])
    columns = {name: (torch.arange(4) + i, None) for i, name in enumerate(("other", "user", "genres"))}
    tokens, grad_BW = FeatureTokens.concatenate(columns, 4).to(DEVICE), _randn(4, table.width)
    reference = _reference(table)
    assert torch.equal(_step(table, tokens, grad_BW), _step(reference, tokens, grad_BW))
    assert torch.equal(table.weight.cpu(), reference.weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("hits", [8, 9, 16, 203])
def test_a_row_hit_many_times_is_updated_once(optimizer: str, hits: int) -> None:
    """Two rows share the hits, so that windows end inside of segments and between them."""
    table = _table(optimizer, features=[Feature(name="hour", exact=True)])
    reference = _reference(table)
    tokens = FeatureTokens.concatenate({"hour": (torch.arange(hits) % 5 // 4 * 4 + 3, None)}, hits)
    grad_BW = _randn(hits, 4)
    _step(table, tokens, grad_BW)
    _step(reference, tokens, grad_BW)
    assert (table.weight.cpu() != _table(optimizer, features=list(table.features)).weight.cpu()).any(dim=1).sum() == 2
    _close(table, reference)


def test_sums_of_heavy_rows_of_a_real_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of ``HEAVY`` as it is, and rows just below, at and above it."""
    monkeypatch.undo()
    heavy = gpu.HEAVY
    known = torch.arange(5)
    table = UnifiedEmbedding(
        [Feature(name="a", exact=True)],
        0,
        4,
        exact_tokens={"a": known},
        optimizer=TableOptimizer(name="sgd", learning_rate=1.0),
        init_std=0.0,
        kernel="reference",
        device=DEVICE,
    )
    table.kernel = gpu.GpuKernel()
    lengths = torch.tensor([heavy - 1, heavy, heavy + 1, 1, 5 * heavy + 3])
    tokens_N = known.repeat_interleave(lengths)[torch.randperm(int(lengths.sum()), generator=torch.manual_seed(0))]
    grad_BW = _randn(len(tokens_N), 4)
    _step(table, FeatureTokens.concatenate({"a": (tokens_N, None)}, len(tokens_N)), grad_BW)
    sums_RD = torch.zeros(5, 4, dtype=torch.float64).index_add_(0, tokens_N, grad_BW.double())
    torch.testing.assert_close(table.weight[:5].cpu(), -sums_RD.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # the interpreter's, in numpy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_rows_are_rounded_as_the_reference_does_bit_for_bit(dtype: torch.dtype) -> None:
    """One hit a row and SGD, so that sums are equal; values of every size, zeros, the ends of the range, no numbers."""
    dim, seed, rows = 64, 3 << 40, 9
    table = UnifiedEmbedding(
        [Feature(name="a", exact=True)],
        0,
        dim,
        exact_tokens={"a": torch.arange(rows)},
        optimizer=TableOptimizer(name="sgd", learning_rate=1.0),
        dtype=dtype,
        init_std=0.0,
        kernel="reference",
        seed=seed,
        device=DEVICE,
    )
    table.kernel = gpu.GpuKernel()
    size = 10 ** torch.linspace(-9, 6, rows * dim).reshape(rows, dim)
    grad_BW = _randn(rows, dim) * size
    largest = torch.finfo(dtype).max
    odd = [0.0, -0.0, largest, -largest, largest * 1.0009, -largest * 1.0009, 3e38, -3e38, torch.inf, -torch.inf]
    grad_BW[0, : len(odd)] = torch.tensor(odd)
    grad_BW[1, 0] = torch.nan
    for step in range(2):
        before = table.weight.cpu().float()
        tokens = FeatureTokens.concatenate({"a": (torch.arange(rows), None)}, rows)
        _step(table, tokens, grad_BW)
        expected = round_stochastically(before[:rows] - grad_BW, dtype, torch.arange(rows), seed + 2 * (step + 1))
        torch.testing.assert_close(table.weight[:rows].cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_gradients_of_any_dtype_and_layout(dtype: torch.dtype) -> None:
    width, tokens = _table("sgd").width, _tokens(_batch(4, 5))
    wide = _randn(4, 3 * width).to(dtype)
    for grad_BW in (wide[:, :width], wide[:, ::3], wide[:1, :1].expand(4, width)):
        one, other = _table("sgd"), _table("sgd")
        other.kernel = ReferenceKernel()
        for each in (one, other):
            request, tensors = each.request(tokens), each.table()
            out_BW, saved = each.kernel.begin(request, tensors)  # type: ignore[attr-defined]
            tensors.end_step()
            each.kernel.update(request, tensors, grad_BW.to(DEVICE), saved)  # type: ignore[attr-defined]
            assert out_BW.dtype == torch.float32
        _close(one, other.cpu())


def test_two_runs_give_the_same_bits() -> None:
    tokens, grad_BW = _tokens(_batch(12, 6)), _randn(12, _table("adam").width)
    tables = [_table("adam", torch.bfloat16) for _ in range(2)]
    for table in tables:
        _step(table, tokens, grad_BW)
    for name, tensor in tables[0].named_buffers():
        assert torch.equal(tensor, tables[1].get_buffer(name))


def test_another_plan_and_inference_mode() -> None:
    """What the kernel holds of a plan is made anew for another, and may be made in inference mode."""
    table = _table("sgd").eval()
    tokens = _tokens(_batch(3, 7))
    with torch.inference_mode():
        inside = table(tokens)
    assert torch.equal(inside, table(tokens))
    grown = table.grow(3)
    grown.kernel = table.kernel
    assert torch.equal(grown(tokens), inside)
    assert torch.equal(table(tokens), inside)


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scattered = _table("sgd")
    scattered.weight = scattered.weight.t().contiguous().t()
    with pytest.raises(KernelError, match=r"rows; expected contiguous.*reference"):
        scattered(_tokens(_batch(1, 0)))
    with pytest.raises(KernelError, match=r"float64.*reference"):
        gpu.check(TableOptimizer(), torch.float64, torch.device(DEVICE))
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    with pytest.raises(KernelError, match=r"expected cuda; found cpu.*TRITON_INTERPRET"):
        gpu.check(TableOptimizer(), torch.float32, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "embstore.kernels.triton_functions", None)
    monkeypatch.delattr("embstore.kernels.triton_functions", raising=False)
    with pytest.raises(KernelError, match=r"can't be loaded.*install triton"):
        gpu.check(TableOptimizer(), torch.float32, torch.device("cuda"))


_COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.kernels import TableOptimizer, gpu, triton_functions
from embstore.schema import Feature

class Driver:  # of a GPU that isn't there
    get_current_target = staticmethod(lambda: GPUTarget("cuda", CAPABILITY, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

class Compiler:  # compiles what would be launched
    def __getattr__(self, name):
        compiled.append(name)
        self.name = name
        return self
    def __getitem__(self, grid):
        return lambda *args, **settings: getattr(triton_functions, self.name).warmup(*args, grid=grid, **settings)

compiled = []
triton.runtime.driver.set_active(Driver())
gpu.functions = Compiler
features = [Feature(name="a"), Feature(name="tags", pooling="mean", lookups=2), Feature(name="x", exact=True)]
table = UnifiedEmbedding(features, 8, 20, exact_tokens={"x": torch.arange(3)}, kernel="reference",
                         optimizer=TableOptimizer(name=OPTIMIZER), dtype=getattr(torch, DTYPE))
table.kernel = gpu.GpuKernel()
columns = {f.name: (torch.arange(200), torch.arange(201) if f.name == "tags" else None) for f in features}
table(FeatureTokens.concatenate(columns, 200)).sum().backward()
print(*sorted(compiled))
"""


@pytest.mark.parametrize(("capability", "optimizer", "dtype"), [(80, "adam", "bfloat16"), (90, "adagrad", "float16")])
def test_the_functions_compile_for_a_gpu(capability: int, optimizer: str, dtype: str, tmp_path: Path) -> None:
    """Triton's interpreter takes more of Python than its compiler does, which needs no GPU to say so."""
    code = f"CAPABILITY, OPTIMIZER, DTYPE = {capability}, {optimizer!r}, {dtype!r}\n" + _COMPILE
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "bound_segments",
        "copy_rows",
        "find_hits",
        "find_list_hits",
        "mark_segments",
        "pool_lists",
        "sum_windows",
        "update_heavy",
        "update_light",
    ]

"""One suite for every kernel, optimizer, dtype and shape of input; the judge is float64 and plain Python."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import EXACT, FEATURES, OPTIMIZERS, RATES, Judge, exact_tokens, feature_tokens

from embstore import threads
from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import KernelError
from embstore.kernels import KERNELS, TableOptimizer, choose, fbgemm, gpu
from embstore.schema import Feature


def _can_fbgemm(device: torch.device) -> bool:
    try:
        fbgemm.check(TableOptimizer(), torch.float32, DIM, device)
    except KernelError:
        return False
    return True


DIM = 4
HAS_FBGEMM = _can_fbgemm(torch.device("cpu"))


def _available(kernel: str, optimizer: str, dtype: torch.dtype = torch.float32) -> None:
    if kernel == "fbgemm":
        if not HAS_FBGEMM:
            pytest.skip("fbgemm-gpu is not installed for this torch")
        if optimizer == "adam" or dtype == torch.bfloat16:
            pytest.skip("FBGEMM has no Adam and no bfloat16 on CPU")
    if kernel == "gpu":
        try:
            gpu.check(TableOptimizer(name=optimizer), dtype, DEVICE)
        except KernelError as error:
            pytest.skip(str(error))


def _device(kernel: str) -> torch.device:
    return DEVICE if kernel == "gpu" or (kernel == "fbgemm" and FBGEMM_ON_GPU) else torch.device("cpu")


NARROW = [torch.float16, torch.bfloat16]
ROUNDING = [name for name in KERNELS if name != "fbgemm"]  # on CPU it rounds float16 to nearest
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of the kernel "gpu", and FBGEMM's CUDA build
FBGEMM_ON_GPU = _can_fbgemm(DEVICE) and DEVICE.type == "cuda"


def _table(
    kernel: str, optimizer: TableOptimizer, dtype: torch.dtype = torch.float32, num_tables: int = 2, dim: int = DIM
) -> UnifiedEmbedding:
    return UnifiedEmbedding(
        FEATURES,
        30,
        dim,
        num_tables=num_tables,
        exact_tokens=exact_tokens(),
        optimizer=optimizer,
        dtype=dtype,
        init_std=1.0,
        kernel=kernel,
        seed=11,
        device=_device(kernel),
    )


def _look_up(table: UnifiedEmbedding, tokens: FeatureTokens) -> torch.Tensor:
    return table(tokens.to(table.weight.device))


def _judged(table: UnifiedEmbedding) -> Judge:
    return Judge(
        features=list(table.features),
        num_rows=table.hashed_rows,
        num_tables=table.num_tables,
        seed=table.seed,
        exact=EXACT,
        optimizer=table.optimizer,
        weight=table.weight.float().cpu().numpy().copy(),
    )


token = st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1), st.sampled_from(EXACT["hour"] + EXACT["colours"]))


@st.composite
def batches(draw: st.DrawFn, rows: int | None = None) -> dict[str, list[list[int]]]:
    rows = draw(st.integers(0, 6)) if rows is None else rows
    single = st.lists(token.map(lambda t: [t]), min_size=rows, max_size=rows)
    lists = st.lists(st.lists(token, max_size=5), min_size=rows, max_size=rows)
    kinds = {"user": single, "tags": lists, "genres": lists, "hour": single, "colours": lists, "nothing": single}
    return {name: draw(kind) for name, kind in kinds.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=15)
@given(steps=st.lists(batches(), min_size=1, max_size=3), seed=st.integers(0, 2**16), l2=st.sampled_from([0.0, 0.3]))
def test_training_follows_the_judge(kernel: str, optimizer: str, steps: list, seed: int, l2: float) -> None:
    _available(kernel, optimizer)
    table = _table(kernel, TableOptimizer(name=optimizer, learning_rate=RATES[optimizer], eps=1e-3, l2=l2))
    judge = _judged(table)
    generator = torch.Generator().manual_seed(seed)
    for batch in steps:
        out_BW = _look_up(table, feature_tokens(batch))
        expected = judge.forward(batch) if out_BW.shape[0] else np.zeros((0, table.width))
        np.testing.assert_allclose(out_BW.detach().cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
        grad_BW = torch.randn(out_BW.shape, generator=generator).to(out_BW.device)
        out_BW.backward(grad_BW)
        judge.train(batch, grad_BW.cpu().numpy())
    table.eval()
    np.testing.assert_allclose(table.weight.cpu().numpy(), judge.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", ROUNDING)
@settings(max_examples=5)
@given(steps=st.lists(batches(), min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_narrow_tables_follow_the_judge(
    kernel: str, optimizer: str, dtype: torch.dtype, steps: list, seed: int
) -> None:
    """Each update may be off by one spacing of the dtype, up or down."""
    _available(kernel, optimizer, dtype)
    table = _table(kernel, TableOptimizer(name=optimizer, learning_rate=RATES[optimizer], eps=1e-3), dtype)
    judge = _judged(table)
    generator = torch.Generator().manual_seed(seed)
    for batch in steps:
        out_BW = _look_up(table, feature_tokens(batch))
        grad_BW = torch.randn(out_BW.shape, generator=generator).to(out_BW.device)
        out_BW.backward(grad_BW)
        judge.train(batch, grad_BW.cpu().numpy())
    spacing = torch.finfo(dtype).eps
    scale = max(1.0, np.abs(judge.weight).max())
    np.testing.assert_allclose(table.weight.float().cpu().numpy(), judge.weight, rtol=0, atol=3 * spacing * scale)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", [name for name in ROUNDING if name != "reference"])
def test_rounding_is_the_reference_s(kernel: str, optimizer: str, dtype: torch.dtype) -> None:
    """Distinct rows, so that no sum can differ; learning rates that take weights over many magnitudes."""
    _available(kernel, optimizer, dtype)
    features = [Feature(name="a")]
    for rate in (1e-6, 1e-2, 30.0):
        settings = TableOptimizer(name=optimizer, learning_rate=rate)
        ours, theirs = (
            UnifiedEmbedding(
                features, 5000, 8, optimizer=settings, dtype=dtype, kernel=name, seed=3, device=_device(name)
            )
            for name in (kernel, "reference")
        )
        ours.weight.copy_(theirs.weight)  # first rows are drawn where a table lies
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, 2**62, (200,), generator=generator)
        rows = ours.plan.rows_of(ours.plan.lookups[0], tokens)
        once = torch.tensor([int((rows == row).sum()) == 1 for row in rows])
        tokens, rows = tokens[once], rows[once]
        for _ in range(2):
            grad_BW = torch.randn(len(tokens), 8, generator=generator)
            for table in (ours, theirs):
                out_BW = _look_up(table, FeatureTokens.concatenate({"a": (tokens, None)}, len(tokens)))
                out_BW.backward(grad_BW.to(out_BW.device))
        different = int((ours.weight.cpu()[rows] != theirs.weight[rows]).sum())
        # Fused products and sums may differ in the last bit of float32, which rounding rarely shows.
        assert different <= 8 * len(rows) // 100, f"{different} of {8 * len(rows)}"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_tables_give_the_same_output(kernel: str, dtype: torch.dtype) -> None:
    _available(kernel, "sgd", dtype)
    table = _table(kernel, TableOptimizer(name="sgd"), dtype).eval()
    batch = {
        "user": [[1], [2]],
        "tags": [[3, 4, 4], []],
        "genres": [[5, 6], [7]],
        "hour": [[3], [9]],
        "colours": [[], [1, 2]],
        "nothing": [[4], [3]],
    }
    out_BW = _look_up(table, feature_tokens(batch))
    assert out_BW.dtype == torch.float32
    np.testing.assert_allclose(out_BW.cpu().numpy(), _judged(table).forward(batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25)
@given(batch=batches(rows=5))
def test_a_batch_gives_what_its_rows_give_alone(kernel: str, batch: dict) -> None:
    _available(kernel, "sgd")
    table = _table(kernel, TableOptimizer(name="sgd")).eval()
    together = _look_up(table, feature_tokens(batch))
    alone = torch.cat(
        [_look_up(table, feature_tokens({name: column[i : i + 1] for name, column in batch.items()})) for i in range(5)]
    )
    assert torch.equal(together, alone)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_hit_by_several_features_is_updated_once(kernel: str, optimizer: str) -> None:
    """One hashed row in all: every lookup of every feature hits it."""
    _available(kernel, optimizer)
    features = [Feature(name="a", lookups=2), Feature(name="b")]
    table = UnifiedEmbedding(
        features,
        1,
        4,
        optimizer=TableOptimizer(name=optimizer, learning_rate=0.1),
        kernel=kernel,
        device=_device(kernel),
    )
    before = float(table.weight[0, 0])
    tokens = torch.arange(8)
    out_BW = _look_up(table, FeatureTokens.concatenate({"a": (tokens[:4], None), "b": (tokens[4:], None)}, 4))
    out_BW.backward(torch.full_like(out_BW, 0.5))
    total = 12 * 0.5  # one gradient: the sum over 4 rows x 3 lookups
    step = {"sgd": 0.1 * total, "adagrad": 0.1, "rowwise_adagrad": 0.1, "adam": 0.1}[optimizer]
    assert float(table.weight[0, 0]) == pytest.approx(before - step, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_steps_add_up_in_narrow_tables(dtype: torch.dtype) -> None:
    """Steps of a thirtieth of the spacing at 1.0 would all be lost to rounding to nearest; auto must not lose them."""
    spacing = torch.finfo(dtype).eps
    optimizer = TableOptimizer(name="sgd", learning_rate=1.0)
    table = UnifiedEmbedding([Feature(name="a")], 1, 256, optimizer=optimizer, dtype=dtype)
    table.weight.fill_(1.0)
    for _ in range(300):
        _look_up(table, FeatureTokens.concatenate({"a": (torch.tensor([1]), None)}, 1)).backward(
            torch.full((1, 256), -spacing / 30)
        )
    assert float(table.weight.float().mean()) == pytest.approx(1 + 10 * spacing, abs=0.6 * spacing)


def _larger_batch(features: list[Feature], rows: int, distinct: int, generator: torch.Generator) -> FeatureTokens:
    """Single values and, for features named l..., lists of length 0 to 9."""
    columns: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for feature in features:
        offsets = None
        count = rows
        if feature.name.startswith("l"):
            lengths = torch.randint(0, 10, (rows,), generator=generator)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            count = int(lengths.sum())
        columns[feature.name] = torch.randint(0, distinct, (count,), generator=generator), offsets
    return FeatureTokens.concatenate(columns, rows)


@pytest.mark.parametrize("distinct", [3, 500, 2**40], ids=["duplicates", "some", "none"])
@pytest.mark.parametrize(
    ("kernel", "dim"),
    [("cpu", 1), ("cpu", 6), ("cpu", 16), ("cpu", 72), ("fbgemm", 16), ("gpu", 6), ("gpu", 16), ("gpu", 72)],
)
def test_kernels_agree_with_the_reference_on_larger_batches(kernel: str, dim: int, distinct: int) -> None:
    """Many chunks, blocks and parts; single values beside lists, hashed beside exact rows."""
    _available(kernel, "rowwise_adagrad")
    if kernel == "gpu" and DEVICE.type == "cpu":
        pytest.skip("too much for Triton's interpreter")
    features = [
        *(Feature(name=f"f{i}", lookups=2) for i in range(5)),
        Feature(name="l0", pooling="mean", lookups=2),
        Feature(name="l1"),
        Feature(name="e", exact=True),
    ]
    exact = {"e": torch.arange(0, 400, 3)}
    tables = [
        UnifiedEmbedding(
            features,
            20_000,
            dim,
            exact_tokens=exact,
            optimizer=TableOptimizer(learning_rate=0.1),
            kernel=name,
            device=_device(name),
        )
        for name in (kernel, "reference")
    ]
    tables[0].weight.copy_(tables[1].weight)  # first rows are drawn where a table lies
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = _larger_batch(features, 1500, distinct, generator)
        grad_BW = torch.randn(1500, tables[0].width, generator=generator)
        outs = [_look_up(table, tokens) for table in tables]
        torch.testing.assert_close(*(out_BW.cpu() for out_BW in outs), rtol=1e-4, atol=1e-5)
        for out_BW in outs:
            out_BW.backward(grad_BW.to(out_BW.device))
    torch.testing.assert_close(tables[0].weight.cpu(), tables[1].weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tables[0].state_sum.cpu(), tables[1].state_sum, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_bits_for_any_number_of_threads(optimizer: str, dtype: torch.dtype) -> None:
    features = [Feature(name="f", lookups=3), Feature(name="l", pooling="mean"), Feature(name="l1")]
    before = torch.get_num_threads()
    tables = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            settings = TableOptimizer(name=optimizer, learning_rate=RATES[optimizer], l2=0.01)
            table = UnifiedEmbedding(features, 3000, 8, optimizer=settings, dtype=dtype, kernel="cpu")
            generator = torch.Generator().manual_seed(5)
            for _ in range(3):
                tokens = _larger_batch(features, 4000, 2000, generator)
                table(tokens).backward(torch.randn(4000, table.width, generator=generator))
            tables.append(table.eval())
    finally:
        torch.set_num_threads(before)
    for other in tables[1:]:
        assert torch.equal(tables[0].weight, other.weight)
        assert all(torch.equal(a, b) for a, b in zip(tables[0].buffers(), other.buffers(), strict=True))


def test_the_same_bits_where_torch_has_no_openmp_team(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other builds of torch: the pool's threads do the work."""
    features = [Feature(name="f", lookups=3), Feature(name="l", pooling="mean"), Feature(name="e", exact=True)]
    tables = []
    for team in (threads.team(), 0):
        monkeypatch.setattr(threads, "team", lambda team=team: team)
        table = UnifiedEmbedding(
            features, 3000, 16, exact_tokens={"e": torch.arange(100)}, optimizer=TableOptimizer(l2=0.1), kernel="cpu"
        )
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            table(_larger_batch(features, 4000, 2000, generator)).sum().backward()
        tables.append(table)
    assert torch.equal(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize(
    ("rows", "dim", "count"), [pytest.param(2**28, 16, 3000, id="numbers"), pytest.param(2**33, 1, 500, id="rows")]
)
def test_tables_beyond_32_bits(rows: int, dim: int, count: int) -> None:
    """Rows beyond every 32-bit number are touched; the memory of those that aren't is never taken."""
    tokens = torch.randint(0, 2**62, (count,), generator=torch.Generator().manual_seed(0))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = np.frombuffer(mmap.mmap(-1, rows * dim * 2, flags=flags), dtype=np.float16)
    weight_ND = torch.from_numpy(memory).view(rows, dim)
    features, sgd = [Feature(name="a")], TableOptimizer(name="sgd")
    table = UnifiedEmbedding(features, rows, dim, rows=weight_ND, optimizer=sgd, kernel="cpu")
    batch = FeatureTokens.concatenate({"a": (tokens, None)}, len(tokens))
    at = table.plan.rows_of(table.plan.lookups[0], tokens)
    assert int(at.max()) * dim > 2**32 - 2**30
    table.learning_rate = 1.0
    table(batch).backward(torch.ones(len(tokens), dim))
    values, counts = at.unique(return_counts=True)
    assert torch.equal(table.weight[values], -counts[:, None].expand(-1, dim).half())
    assert torch.equal(table.eval()(batch), table.weight[at].float())


def _mixed_table(kernel: str, dtype: torch.dtype = torch.float32, dim: int = 8) -> UnifiedEmbedding:
    features = [Feature(name="f", lookups=3), Feature(name="l", pooling="mean"), Feature(name="l1")]
    return UnifiedEmbedding(features, 3000, dim, optimizer=TableOptimizer(l2=0.01), dtype=dtype, kernel=kernel)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_backward_may_come_later_or_twice(kernel: str) -> None:
    """Each backward updates the rows of its own forward, whatever was looked up since; each time it is run."""
    generator = torch.Generator().manual_seed(5)
    tables = [_mixed_table(kernel), _mixed_table("reference")]
    first, second = (_larger_batch(list(tables[0].features), 900, 500, generator) for _ in range(2))
    for table in tables:
        outs = [table(first), table(second)]
        outs[0].sum().backward(retain_graph=True)
        outs[1].sum().backward()
        outs[0].sum().backward()
    torch.testing.assert_close(tables[0].eval().weight, tables[1].eval().weight, rtol=1e-4, atol=1e-5)


def test_threads_may_look_up_at_the_same_time() -> None:
    table = _mixed_table("cpu").eval()
    generator = torch.Generator().manual_seed(5)
    batches = [_larger_batch(list(table.features), 2500, 2000, generator) for _ in range(6)]
    with torch.no_grad():
        expected = [table(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            found = pool.map(lambda batch: table(batch).detach(), batches)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["weight", "state_sum", "paid"])
@pytest.mark.parametrize("wrong", ["strided", "type", "size"])
def test_tensors_that_compiled_code_would_misread_are_refused(name: str, wrong: str) -> None:
    """Whoever assigns a table's tensors goes round its constructor."""
    table = _mixed_table("cpu")
    tensor = getattr(table, name)
    if wrong == "strided":
        tensor = torch.stack([tensor, tensor], dim=-1)[..., 0]
    setattr(table, name, {"strided": tensor, "type": tensor.to(torch.int16), "size": tensor[:-1]}[wrong])
    batch = _larger_batch(list(table.features), 10, 50, torch.Generator().manual_seed(0))
    with pytest.raises(KernelError, match=r"kernel 'cpu'.*contiguous"):
        table(batch)


_LISTS_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
import torch
from embstore import Feature, FeatureTokens, UnifiedEmbedding
table = UnifiedEmbedding([Feature(name="l")], 3000, 256, dtype=torch.bfloat16, kernel="cpu").eval()
tokens = torch.randint(0, 2000, (20_000,), generator=torch.Generator().manual_seed(0))
batch = FeatureTokens.concatenate({"l": (tokens, torch.arange(0, 20_001, 10))}, 2000)
with torch.no_grad():
    expected = table.table().weight_ND.float()[table.plan.rows_of(table.plan.lookups[0], tokens)].view(2000, 10, 256)
    expected = expected.double().sum(1).float()
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(lambda _: table(batch), range(30)))
"""


def test_scratch_memory_is_not_shared_by_threads() -> None:
    """With one malloc arena, memory that a thread gives back too soon is the next one's at once."""
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", _LISTS_IN_THREADS], check=True, env=environment)


def test_auto_says_what_it_took_and_why() -> None:
    for optimizer in OPTIMIZERS:
        kernel, reason = choose(
            "auto",
            optimizer=TableOptimizer(name=optimizer),
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            dim=5,
        )
        assert kernel.name == "cpu"
        assert optimizer in reason
    kernel, reason = choose(
        "auto", optimizer=TableOptimizer(name="adam"), dtype=torch.float32, device=torch.device("meta"), dim=4
    )
    assert kernel.name == "reference"
    assert "cpu not taken" in reason


def test_auto_on_a_gpu_takes_gpu_but_not_for_a_table_that_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KernelError("kernel 'fbgemm' can't be loaded", found="undefined symbol")

    on_gpu = {"optimizer": TableOptimizer(), "dtype": torch.float32, "device": torch.device("cuda"), "dim": 4}
    monkeypatch.setattr("embstore.kernels.gpu.check", lambda *_: None)
    monkeypatch.setattr("embstore.kernels.fbgemm.check", lambda *_: None)
    assert choose("auto", **on_gpu)[0].name == "gpu"
    assert choose("auto", shared=True, **on_gpu)[0].name == "fbgemm"
    monkeypatch.undo()
    monkeypatch.setattr("embstore.kernels.fbgemm.load", broken)
    kernel, reason = choose("auto", shared=True, **on_gpu)
    assert kernel.name == "reference"
    assert "fbgemm not taken: kernel 'fbgemm' can't be loaded (undefined symbol)" in reason


def test_fbgemm_asked_for_what_it_lacks_is_refused() -> None:
    _available("fbgemm", "sgd")
    with pytest.raises(KernelError, match=r"no adam.*reference"):
        _table("fbgemm", TableOptimizer(name="adam"))
    with pytest.raises(KernelError, match="multiple of 4"):
        UnifiedEmbedding([Feature(name="a")], 10, 6, kernel="fbgemm")
    with pytest.raises(KernelError, match="bfloat16"):
        _table("fbgemm", TableOptimizer(name="sgd"), torch.bfloat16)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inference_mode_reads_and_leaves_training_able(kernel: str) -> None:
    _available(kernel, "rowwise_adagrad")
    table = UnifiedEmbedding([Feature(name="a")], 50, 4, kernel=kernel, device=_device(kernel)).eval()
    tokens = FeatureTokens.concatenate({"a": (torch.arange(20), None)}, 20).to(_device(kernel))
    with torch.inference_mode():
        inside = table(tokens)
    assert torch.equal(inside, table(tokens))
    before = table.weight.clone()
    table.train()(tokens).sum().backward()
    assert not torch.equal(table.weight, before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_whatever_reads_a_table_in_training_sees_the_penalty_paid(kernel: str) -> None:
    """Rows untouched for a while are stale in memory; no way of reading may show it."""
    _available(kernel, "rowwise_adagrad")
    features = [Feature(name="a")]
    optimizer = TableOptimizer(learning_rate=0.1, l2=0.5, eps=1e-2)
    table = UnifiedEmbedding(features, 40, 4, optimizer=optimizer, init_std=1.0, kernel=kernel, device=_device(kernel))
    everything = FeatureTokens.concatenate({"a": (torch.arange(100), None)}, 100).to(_device(kernel))
    for start in (0, 50, 0, 0):
        table(everything.slice(start, start + 10)).sum().backward()
    settled = deepcopy(table).eval()
    assert not torch.equal(table.weight, settled.weight)  # there is something to pay
    with torch.no_grad():
        assert torch.equal(deepcopy(table)(everything), settled(everything))
    assert torch.equal(deepcopy(table).lookup("a", range(100)), settled.lookup("a", range(100)))
    assert torch.equal(deepcopy(table).read_rows(3, 17), settled.weight[3:17].cpu())
    loaded = UnifiedEmbedding(features, 40, 4, optimizer=optimizer, kernel=kernel, device=_device(kernel)).eval()
    loaded.load_state_dict(table.state_dict())
    assert torch.equal(loaded.weight, settled.weight)


def test_a_forward_without_backward_is_no_step() -> None:
    table = UnifiedEmbedding([Feature(name="a")], 40, 4, optimizer=TableOptimizer(l2=0.5))
    tokens = FeatureTokens.concatenate({"a": (torch.arange(10), None)}, 10)
    before = table.weight.clone()
    for _ in range(3):
        table(tokens)
    assert torch.equal(table.eval().weight, before)


def test_settling_what_owes_nothing_writes_nothing() -> None:
    """A published table is mapped from its files; writing to it would copy it into memory."""
    table = UnifiedEmbedding([Feature(name="a")], 40, 4, optimizer=TableOptimizer(l2=0.5))
    version = table.weight._version
    table.eval().train().eval()
    assert table.weight._version == version

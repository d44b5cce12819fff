"""Memory of outputs: given again when it is free, never while anything can see it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import torch

from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.kernels.cpu import CpuKernel
from embstore.kernels.outputs import LEAST, MOST, Outputs
from embstore.schema import Feature

ROWS, WIDTH = 1024, LEAST // 512


def test_memory_is_given_again_when_the_tensor_is_gone() -> None:
    outputs = Outputs()
    first = outputs.take(ROWS, WIDTH)
    assert first.shape == (ROWS, WIDTH)
    assert first.dtype == torch.float32
    assert first.data_ptr() % 64 == 0
    address = first.data_ptr()
    del first
    assert outputs.take(ROWS - 1, WIDTH).data_ptr() == address


def test_memory_is_not_given_again_while_anything_shares_it() -> None:
    outputs = Outputs()
    keepers = [
        lambda tensor: tensor,
        lambda tensor: tensor[3:5, :2],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.detach(),
        lambda tensor: (tensor.requires_grad_() ** 2).sum(),  # saved for the backward pass
        lambda tensor: torch.utils.dlpack.to_dlpack(tensor),
    ]
    for keep in keepers:
        taken = outputs.take(ROWS, WIDTH)
        address = taken.data_ptr()
        kept = keep(taken)
        del taken
        gc.collect()
        others = [outputs.take(ROWS, WIDTH) for _ in range(3)]
        assert address not in [other.data_ptr() for other in others]
        del kept, others


def test_small_and_huge_outputs_are_the_allocator_s() -> None:
    outputs = Outputs()
    outputs.take(1, LEAST - 1)
    outputs.take(2, MOST)
    assert not outputs._arrays


def test_threads_get_memory_of_their_own() -> None:
    outputs = Outputs()

    def work(number: int) -> bool:
        for _ in range(20):
            tensor = outputs.take(ROWS, WIDTH).fill_(number)
            if not bool((tensor == number).all()):
                return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_a_copied_kernel_has_outputs_of_its_own() -> None:
    kernel = CpuKernel()
    kernel._outputs.take(ROWS, WIDTH)
    assert not deepcopy(kernel)._outputs._arrays


def test_a_smaller_batch_s_output_may_be_changed_in_place() -> None:
    """The last batch of an epoch, with in-place dropout behind the table: a view would be refused by autograd."""
    table = UnifiedEmbedding([Feature(name=f"f{i}") for i in range(20)], 1000, 16, kernel="cpu")
    for rows in (1000, 1000, 900):
        columns = {feature.name: (torch.arange(rows), None) for feature in table.features}
        out_BW = table(FeatureTokens.concatenate(columns, rows))
        assert out_BW.shape == (rows, 320)
        assert not out_BW._is_view()
        out_BW.mul_(2)
        out_BW.sum().backward()
        del out_BW

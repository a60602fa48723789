"""The compiled kernels of experts against fp32 arithmetic, and the shards that hold them."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.cpu_kernels.in_use import kernels_for
from model.cpu_kernels.library import CpuKernels
from model.experts import Expert, ExpertShard, PackedExpert, make_expert
from model.quantization import QuantizedMatrix, quantize
from tests.compiled_kernels import kernels_in_use, variants_and_threads
from tests.model.bf16_tensors import BF16, assert_close, random_bf16


@pytest.fixture(params=variants_and_threads(1, 2, 3), ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with kernels_in_use(*request.param) as found:
        yield found


def _weights(width: int, inner: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        random_bf16(inner, width, seed=seed, scale=width**-0.5),
        random_bf16(inner, width, seed=seed + 100, scale=width**-0.5),
        random_bf16(width, inner, seed=seed + 200, scale=inner**-0.5),
    )


def _mixture(
    experts: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Row by row and choice by choice, in fp32; hidden values are rounded, as the kernels do."""
    y = torch.zeros(x.shape)
    for row in range(x.shape[0]):
        for expert_id, weight in zip(ids[row].tolist(), weights[row], strict=True):
            if expert_id >= 0:
                w1, w3, w2 = (matrix.float() for matrix in experts[expert_id])
                hidden = F.silu(w1 @ x[row].float()) * (w3 @ x[row].float())
                y[row] += weight * (w2 @ hidden.to(BF16).float())
    return y


@pytest.mark.parametrize(
    ("width", "inner", "num_experts", "top_k", "rows"),
    [(64, 96, 8, 2, 1), (98, 118, 5, 2, 20), (96, 200, 5, 3, 61), (32, 14, 3, 1, 100)],
)
def test_experts_are_the_weighted_sum_in_fp32(
    kernels: CpuKernels, width: int, inner: int, num_experts: int, top_k: int, rows: int
) -> None:
    held = {e: _weights(width, inner, e) for e in range(num_experts)}
    shard = ExpertShard({(3, e): make_expert(*w) for e, w in held.items()})
    x = random_bf16(rows, width, seed=9)
    logits = torch.randn(rows, num_experts, generator=torch.Generator().manual_seed(5))
    top, ids = logits.topk(top_k)
    weights = top.softmax(-1)
    ids[::3, -1] = -1  # another rank's
    y = shard.forward(3, x, ids, weights)
    assert_close(y, _mixture(held, x, ids, weights))


def test_experts_give_a_row_the_same_whatever_is_beside_it(kernels: CpuKernels) -> None:
    shard = ExpertShard({(0, e): make_expert(*_weights(64, 96, e)) for e in range(4)})
    x = random_bf16(45, 64, seed=9)
    logits = torch.randn(45, 4, generator=torch.Generator().manual_seed(5))
    top, ids = logits.topk(2)
    weights = top.softmax(-1)
    together = shard.forward(0, x, ids, weights)
    for row in range(45):
        one = slice(row, row + 1)
        assert torch.equal(shard.forward(0, x[one], ids[one], weights[one]), together[one])
    kernels.num_threads += 2
    assert torch.equal(shard.forward(0, x, ids, weights), together)


def test_experts_take_int32_ids_and_many_rows_for_one_of_them(kernels: CpuKernels) -> None:
    held = {e: _weights(64, 48, e) for e in (1, 4)}  # ids with gaps
    shard = ExpertShard({(0, e): make_expert(*w) for e, w in held.items()})
    x = random_bf16(40, 64)
    ids = torch.full((40, 2), 4, dtype=torch.int32)
    ids[:, 0] = -1
    ids[39] = torch.tensor([1, -1])
    ids[5] = -1  # nothing for this row here
    weights = torch.full((40, 2), 0.5)
    y = shard.forward(0, x, ids, weights)
    assert_close(y, _mixture(held, x, ids, weights))
    assert y[5].eq(0).all()


@pytest.mark.parametrize("missing", [2, 7, 10_000])
def test_an_expert_that_is_not_held_is_named(kernels: CpuKernels, missing: int) -> None:
    shard = ExpertShard({(0, e): make_expert(*_weights(64, 48, e)) for e in (0, 5)})
    ids = torch.tensor([[0, missing]])
    with pytest.raises(KeyError, match=f"expert {missing} "):
        shard.forward(0, random_bf16(1, 64), ids, torch.full((1, 2), 0.5))


def test_a_shard_that_changes_serves_what_it_holds(kernels: CpuKernels) -> None:
    held = {e: _weights(64, 48, e) for e in range(3)}
    shard = ExpertShard({(0, 0): make_expert(*held[0])})
    shard.add(ExpertShard({(0, e): make_expert(*held[e]) for e in (1, 2)}))
    x, ids, weights = random_bf16(4, 64), torch.tensor([[1, 2]] * 4), torch.full((4, 2), 0.5)
    assert_close(shard.forward(0, x, ids, weights), _mixture(held, x, ids, weights))
    shard.remove([(0, 1)])
    assert shard.held == [(0, 0), (0, 2)]
    with pytest.raises(KeyError, match="expert 1 "):
        shard.forward(0, x, ids, weights)


def test_what_the_kernels_cannot_take_goes_through_torch() -> None:
    for dtype, inner in ((torch.float32, 48), (BF16, 47)):
        expert = make_expert(*(matrix.to(dtype) for matrix in _weights(64, inner, 0)))
        assert isinstance(expert, Expert)
    assert kernels_for(torch.empty(4, 64)) is None
    assert kernels_for(torch.empty(4, 63, dtype=BF16)) is None


def test_packed_weights_are_as_large_as_plain_ones(kernels: CpuKernels) -> None:
    expert = make_expert(*_weights(64, 96, 0))
    assert isinstance(expert, PackedExpert)
    assert expert.w13.numel() + expert.w2.numel() == 3 * 64 * 96
    assert expert.num_bytes == 3 * 64 * 96 * 2


def test_the_address_arrays_may_be_longer_than_the_experts_held(kernels: CpuKernels) -> None:
    w1, w3, w2 = _weights(64, 48, 0)
    packed = PackedExpert(kernels, w1, w3, w2)
    w13_E, w2_E = (ctypes.c_void_p * 6)(), (ctypes.c_void_p * 6)()
    w13_E[2], w2_E[2] = packed.w13.data_ptr(), packed.w2.data_ptr()
    x, ids, weights = random_bf16(3, 64), torch.full((3, 1), 2), torch.ones(3, 1)
    y = kernels.experts(x, ids, weights, w13_E, w2_E, 48)
    assert_close(y, _mixture({2: (w1, w3, w2)}, x, ids, weights))


def test_matrices_that_a_checkpoint_left_dense_among_quantized_ones(kernels: CpuKernels) -> None:
    """Whole experts of them, and one of three: bitsandbytes skips modules by name."""
    held = {e: _weights(64, 96, e) for e in range(5)}
    stored: dict[int, list[torch.Tensor | QuantizedMatrix]] = {e: [*w] for e, w in held.items()}
    for expert, places in {1: (0, 1, 2), 2: (0, 1), 3: (2,), 4: (0, 1, 2)}.items():
        for place in places:
            rounded = quantize(held[expert][place], 8)
            stored[expert][place] = rounded
            restored = list(held[expert])
            restored[place] = rounded.dequantize(torch.float32)
            held[expert] = (restored[0], restored[1], restored[2])
    shard = ExpertShard({(0, e): make_expert(*matrices) for e, matrices in stored.items()})
    x = random_bf16(40, 64, seed=9)
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(5))
    top, ids = logits.topk(2)
    weights = top.softmax(-1)
    # Experts of both kinds go through torch, which rounds what the kernels keep in fp32.
    exact = _mixture(held, x, ids, weights)
    torch.testing.assert_close(shard.forward(0, x, ids, weights).float(), exact, rtol=0, atol=0.03)


def test_a_running_forward_keeps_the_experts_it_began_with(
    kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {e: _weights(64, 96, e) for e in range(2)}
    shard = ExpertShard({(0, e): make_expert(*w) for e, w in held.items()})
    packed = [
        weakref.ref(one.w13) for one in shard._experts.values() if isinstance(one, PackedExpert)
    ]
    assert len(packed) == 2
    run = kernels.experts
    alive = []

    def run_while_they_go(*arguments: Any) -> torch.Tensor:
        shard.remove([(0, 0), (0, 1)])
        gc.collect()
        alive.append(all(one() is not None for one in packed))
        return run(*arguments)

    monkeypatch.setattr(kernels, "experts", run_while_they_go)
    x = random_bf16(4, 64, seed=9)
    ids, weights = torch.tensor([[0, 1]] * 4), torch.full((4, 2), 0.5)
    assert_close(shard.forward(0, x, ids, weights), _mixture(held, x, ids, weights))
    assert alive == [True] and shard.held == []
    gc.collect()
    assert all(one() is None for one in packed)


def test_experts_come_and_go_by_several_threads_at_once(kernels: CpuKernels) -> None:
    experts = {(0, e): make_expert(*_weights(16, 16, e)) for e in range(24)}
    shard = ExpertShard({pair: one for pair, one in experts.items() if pair[1] < 12})
    start = Barrier(2)

    def add() -> None:
        start.wait(10)
        for pair in list(experts)[12:]:
            shard.add(ExpertShard({pair: experts[pair]}))

    def remove() -> None:
        start.wait(10)
        for pair in list(experts)[:12]:
            shard.remove([pair])

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(add), pool.submit(remove)]:
            done.result(30)
    assert shard.held == list(experts)[12:]
    x = random_bf16(12, 16, seed=9)
    ids = torch.arange(12, 24)[:, None]
    y = shard.forward(0, x, ids, torch.ones(12, 1))  # KeyError for one that is not served
    assert y.isfinite().all()

"""The compiled kernels against fp32 arithmetic in torch, on shapes that fill no panel evenly."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from model.cpu_kernels.in_use import kernels_for
from model.cpu_kernels.library import CpuKernels
from model.experts import Expert, ExpertShard, PackedExpert, make_expert
from model.rope import rotate
from tests.compiled_kernels import kernels_in_use, variants_and_threads

BF16 = torch.bfloat16
NAN = float("nan")


@pytest.fixture(params=variants_and_threads(1, 2, 3), ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with kernels_in_use(*request.param) as found:
        yield found


def _random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(BF16)


def _close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding to bf16 of sums that may cancel."""
    torch.testing.assert_close(ours.float(), exact, rtol=2**-8, atol=2**-9)


@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 29, 71])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(32, 2), (5, 64), (100, 130), (64, 1024), (530, 2340)]
)
def test_linear_is_the_product_in_fp32(
    kernels: CpuKernels, rows: int, outputs: int, inputs: int
) -> None:
    weight = _random(outputs, inputs, seed=1, scale=inputs**-0.5)
    x = _random(rows, inputs, seed=2)
    y = kernels.linear(x, kernels.pack(weight), outputs)
    assert y.shape == (rows, outputs)
    _close(y, x.float() @ weight.float().T)


def test_linear_reads_rows_at_any_stride(kernels: CpuKernels) -> None:
    wide = torch.full((6, 200), NAN, dtype=BF16)
    wide[:, 50:150] = _random(6, 100)
    weight = _random(40, 100, seed=1)
    packed = kernels.pack(weight)
    x = wide[:, 50:150]
    assert torch.equal(kernels.linear(x, packed, 40), kernels.linear(x.contiguous(), packed, 40))


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 256), (530, 2340)])
def test_a_rows_result_does_not_depend_on_the_rows_beside_it(
    kernels: CpuKernels, outputs: int, inputs: int
) -> None:
    packed, x = kernels.pack(_random(outputs, inputs, seed=1)), _random(33, inputs, seed=2)
    together = kernels.linear(x, packed, outputs)
    alone = torch.cat([kernels.linear(x[i : i + 1], packed, outputs) for i in range(33)])
    assert torch.equal(together, alone)


def test_nan_stays_in_its_row(kernels: CpuKernels) -> None:
    x = _random(20, 64, seed=2)
    x[7] = NAN
    y = kernels.linear(x, kernels.pack(_random(48, 64)), 48)
    assert y[7].isnan().all()
    assert y[torch.arange(20) != 7].isfinite().all()


def _weights(width: int, inner: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        _random(inner, width, seed=seed, scale=width**-0.5),
        _random(inner, width, seed=seed + 100, scale=width**-0.5),
        _random(width, inner, seed=seed + 200, scale=inner**-0.5),
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
    x = _random(rows, width, seed=9)
    logits = torch.randn(rows, num_experts, generator=torch.Generator().manual_seed(5))
    top, ids = logits.topk(top_k)
    weights = top.softmax(-1)
    ids[::3, -1] = -1  # another rank's
    y = shard.forward(3, x, ids, weights)
    _close(y, _mixture(held, x, ids, weights))


def test_experts_give_a_row_the_same_whatever_is_beside_it(kernels: CpuKernels) -> None:
    shard = ExpertShard({(0, e): make_expert(*_weights(64, 96, e)) for e in range(4)})
    x = _random(45, 64, seed=9)
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
    x = _random(40, 64)
    ids = torch.full((40, 2), 4, dtype=torch.int32)
    ids[:, 0] = -1
    ids[39] = torch.tensor([1, -1])
    ids[5] = -1  # nothing for this row here
    weights = torch.full((40, 2), 0.5)
    y = shard.forward(0, x, ids, weights)
    _close(y, _mixture(held, x, ids, weights))
    assert y[5].eq(0).all()


@pytest.mark.parametrize("missing", [2, 7, 10_000])
def test_an_expert_that_is_not_held_is_named(kernels: CpuKernels, missing: int) -> None:
    shard = ExpertShard({(0, e): make_expert(*_weights(64, 48, e)) for e in (0, 5)})
    ids = torch.tensor([[0, missing]])
    with pytest.raises(KeyError, match=f"expert {missing} "):
        shard.forward(0, _random(1, 64), ids, torch.full((1, 2), 0.5))


def test_a_shard_that_changes_serves_what_it_holds(kernels: CpuKernels) -> None:
    held = {e: _weights(64, 48, e) for e in range(3)}
    shard = ExpertShard({(0, 0): make_expert(*held[0])})
    shard.add(ExpertShard({(0, e): make_expert(*held[e]) for e in (1, 2)}))
    x, ids, weights = _random(4, 64), torch.tensor([[1, 2]] * 4), torch.full((4, 2), 0.5)
    _close(shard.forward(0, x, ids, weights), _mixture(held, x, ids, weights))
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


@pytest.mark.parametrize("width", [8, 16, 100, 1024])
def test_rms_norm(kernels: CpuKernels, width: int) -> None:
    x, weight = _random(5, width), _random(width, seed=1)
    scale = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    exact = (x.float() * scale).to(BF16).float() * weight.float()
    torch.testing.assert_close(
        kernels.rms_norm(x, weight, 1e-5).float(), exact, rtol=2**-7, atol=2**-12
    )


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (5, 3), (4, 1), (3, 3)])
def test_top_k_is_the_softmax_over_the_largest(
    kernels: CpuKernels, experts: int, top_k: int
) -> None:
    logits = _random(200, experts, seed=4)
    ids, weights = kernels.top_k(logits, top_k)
    # Of equal logits, which bf16 makes likely, the lower id comes first.
    order = logits.float().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids, order.indices[:, :top_k])
    torch.testing.assert_close(weights, order.values[:, :top_k].softmax(-1))


def _cached(
    lengths: list[int], kv_heads: int, dim: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """(cache, block table, each sequence's own [positions, 2 G, d]); unused slots hold NaN."""
    generator = torch.Generator().manual_seed(3)
    blocks = [-(-length // block_size) for length in lengths]
    cache = torch.full((sum(blocks) * block_size, 2 * kv_heads, dim), NAN, dtype=BF16)
    shuffled = torch.randperm(sum(blocks), generator=generator)
    table = torch.full((len(lengths), max(blocks)), 10**9)  # beyond the cache: never to be read
    sequences, used = [], 0
    for row, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        table[row, :count] = shuffled[used : used + count]
        used += count
        own = _random(length, 2 * kv_heads, dim, seed=row)
        for position in range(length):
            block = int(table[row, position // block_size])
            cache[block * block_size + position % block_size] = own[position]
        sequences.append(own)
    return cache, table, sequences


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size", "window"),
    [(4, 4, 32, 16, None), (8, 2, 64, 16, None), (6, 1, 32, 8, 20), (10, 2, 128, 4, 7)],
)
def test_decode_attention_is_softmax_over_each_rows_own_positions(
    kernels: CpuKernels, heads: int, kv_heads: int, dim: int, block_size: int, window: int | None
) -> None:
    lengths = [1, 16, 17, 5, 63, 130]
    cache, table, sequences = _cached(lengths, kv_heads, dim, block_size)
    joined = _random(len(lengths), heads + 2 * kv_heads, dim, seed=50)  # as the projection gives it
    query = joined[:, :heads]
    out = kernels.decode_attention(query, cache, table, torch.tensor(lengths), block_size, window)
    for row, (length, own) in enumerate(zip(lengths, sequences, strict=True)):
        seen = own[max(0, length - window) if window else 0 :].float()
        keys, values = (part.repeat_interleave(heads // kv_heads, 1) for part in seen.chunk(2, 1))
        scores = torch.einsum("hd,shd->hs", query[row].float(), keys) * dim**-0.5
        exact = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
        _close(out[row], exact.reshape(-1))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size", "window", "start", "rows"),
    [
        (4, 4, 32, 16, None, 0, 1),
        (8, 2, 64, 16, None, 0, 150),
        (4, 2, 64, 16, None, 300, 45),
        (6, 1, 32, 8, 20, 0, 77),
        (6, 1, 32, 8, 1, 40, 30),
        (2, 1, 128, 4, 130, 260, 141),
    ],
)
def test_prefill_attention_is_softmax_up_to_each_rows_own_position(
    kernels: CpuKernels,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    window: int | None,
    start: int,
    rows: int,
) -> None:
    end = start + rows
    cache, table, [own] = _cached([end], kv_heads, dim, block_size)
    query = _random(rows, heads + 2 * kv_heads, dim, seed=60)[:, :heads]
    out = kernels.prefill_attention(query, cache, table[0], start, block_size, window)
    keys, values = (p.repeat_interleave(heads // kv_heads, 1) for p in own.float().chunk(2, 1))
    scores = torch.einsum("thd,shd->hts", query.float(), keys) * dim**-0.5
    behind = torch.arange(start, end)[:, None] - torch.arange(end)[None, :]
    hidden = (behind < 0) | (behind >= (window or end + 1))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    exact = torch.einsum("hts,shd->thd", weights, values).reshape(rows, -1)
    # The weights are rounded to bf16 before they meet the values, as flash attention does.
    torch.testing.assert_close(out.float(), exact, rtol=2**-7, atol=2**-7)


def test_rotate_and_store(kernels: CpuKernels) -> None:
    heads, kv_heads, dim, rows = 4, 2, 64, 3
    joined = _random(rows, heads + 2 * kv_heads, dim)
    angles = torch.randn(rows, 1, dim // 2, generator=torch.Generator().manual_seed(1))
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(BF16)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(BF16)
    exact = joined.float()
    rotate(exact[:, : heads + kv_heads], cos.float(), sin.float())
    cache = torch.full((8, 2 * kv_heads, dim), NAN, dtype=BF16)
    slots = torch.tensor([6, 0, 3])
    kernels.rotate_and_store(joined, cos, sin, cache, slots, heads)
    _close(joined, exact)
    assert torch.equal(cache[slots], joined[:, heads:])
    untouched = [slot for slot in range(8) if slot not in (6, 0, 3)]
    assert cache[untouched].isnan().all()


@pytest.mark.parametrize("width", [1, 16, 17, 1000, 32000])
def test_best_is_the_first_of_the_largest(kernels: CpuKernels, width: int) -> None:
    logits = _random(7, width, scale=3.0)  # of few values, so that many tie at 32,000
    assert kernels.best(logits) == logits.float().numpy().argmax(-1).tolist()
    logits[1, width // 2] = logits[2, -1] = logits[3, 0] = logits[4].max() + 50
    assert kernels.best(logits) == logits.float().numpy().argmax(-1).tolist()
    assert kernels.best(logits.fill_(-2.0)) == [0] * 7


@pytest.mark.parametrize("at", [0, 15, 16, 20])
def test_there_is_no_best_beside_nan_or_infinity(kernels: CpuKernels, at: int) -> None:
    logits = _random(5, 21)
    logits[1, at], logits[2, at], logits[3] = NAN, float("inf"), -float("inf")
    logits[4] = -float("inf")
    logits[4, at] = -1e30
    expected = int(logits[0].float().numpy().argmax())
    assert kernels.best(logits) == [expected, -1, -1, -1, at]


def test_the_address_arrays_may_be_longer_than_the_experts_held(kernels: CpuKernels) -> None:
    w1, w3, w2 = _weights(64, 48, 0)
    packed = PackedExpert(kernels, w1, w3, w2)
    w13_E, w2_E = (ctypes.c_void_p * 6)(), (ctypes.c_void_p * 6)()
    w13_E[2], w2_E[2] = packed.w13.data_ptr(), packed.w2.data_ptr()
    x, ids, weights = _random(3, 64), torch.full((3, 1), 2), torch.ones(3, 1)
    y = kernels.experts(x, ids, weights, w13_E, w2_E, 48)
    _close(y, _mixture({2: (w1, w3, w2)}, x, ids, weights))

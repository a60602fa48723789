"""The compiled kernels against fp32 arithmetic in torch, on shapes that fill no panel evenly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.cpu_kernels.library import CpuKernels
from model.rope import rotate
from tests.compiled_kernels import kernels_in_use, variants_and_threads
from tests.model.bf16_tensors import BF16, assert_close, random_bf16

NAN = float("nan")


@pytest.fixture(params=variants_and_threads(1, 2, 3), ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with kernels_in_use(*request.param) as found:
        yield found


@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 29, 71])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(32, 2), (5, 64), (100, 130), (64, 1024), (530, 2340)]
)
def test_linear_is_the_product_in_fp32(
    kernels: CpuKernels, rows: int, outputs: int, inputs: int
) -> None:
    weight = random_bf16(outputs, inputs, seed=1, scale=inputs**-0.5)
    x = random_bf16(rows, inputs, seed=2)
    y = kernels.linear(x, kernels.pack(weight), outputs)
    assert y.shape == (rows, outputs)
    assert_close(y, x.float() @ weight.float().T)


def test_linear_reads_rows_at_any_stride(kernels: CpuKernels) -> None:
    wide = torch.full((6, 200), NAN, dtype=BF16)
    wide[:, 50:150] = random_bf16(6, 100)
    weight = random_bf16(40, 100, seed=1)
    packed = kernels.pack(weight)
    x = wide[:, 50:150]
    assert torch.equal(kernels.linear(x, packed, 40), kernels.linear(x.contiguous(), packed, 40))


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 256), (530, 2340)])
def test_a_rows_result_does_not_depend_on_the_rows_beside_it(
    kernels: CpuKernels, outputs: int, inputs: int
) -> None:
    packed, x = kernels.pack(random_bf16(outputs, inputs, seed=1)), random_bf16(33, inputs, seed=2)
    together = kernels.linear(x, packed, outputs)
    alone = torch.cat([kernels.linear(x[i : i + 1], packed, outputs) for i in range(33)])
    assert torch.equal(together, alone)


def test_nan_stays_in_its_row(kernels: CpuKernels) -> None:
    x = random_bf16(20, 64, seed=2)
    x[7] = NAN
    y = kernels.linear(x, kernels.pack(random_bf16(48, 64)), 48)
    assert y[7].isnan().all()
    assert y[torch.arange(20) != 7].isfinite().all()


@pytest.mark.parametrize("width", [8, 16, 100, 1024])
def test_rms_norm(kernels: CpuKernels, width: int) -> None:
    x, weight = random_bf16(5, width), random_bf16(width, seed=1)
    scale = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    exact = (x.float() * scale).to(BF16).float() * weight.float()
    torch.testing.assert_close(
        kernels.rms_norm(x, weight, 1e-5).float(), exact, rtol=2**-7, atol=2**-12
    )


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (5, 3), (4, 1), (3, 3)])
def test_top_k_is_the_softmax_over_the_largest(
    kernels: CpuKernels, experts: int, top_k: int
) -> None:
    logits = random_bf16(200, experts, seed=4)
    ids, weights = kernels.top_k(logits, top_k)
    # Of equal logits, which bf16 makes likely, the lower id comes first.
    order = logits.float().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids, order.indices[:, :top_k])
    torch.testing.assert_close(weights, order.values[:, :top_k].softmax(-1))


def test_top_k_takes_nan_for_the_largest_as_torch_does(kernels: CpuKernels) -> None:
    rows = [[NAN, 1.0, 2.0], [1.0, NAN, 2.0], [2.0, 1.0, NAN], [NAN, 3.0, NAN], [NAN] * 3]
    ids, weights = kernels.top_k(torch.tensor(rows, dtype=BF16), 2)
    assert ids.tolist() == [[0, 2], [1, 2], [2, 0], [0, 2], [0, 1]]
    assert weights.isnan().all()  # so the row's sum is no number, and its request ends


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
        own = random_bf16(length, 2 * kv_heads, dim, seed=row)
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
    joined = random_bf16(
        len(lengths), heads + 2 * kv_heads, dim, seed=50
    )  # as the projection gives it
    query = joined[:, :heads]
    out = kernels.decode_attention(query, cache, table, torch.tensor(lengths), block_size, window)
    for row, (length, own) in enumerate(zip(lengths, sequences, strict=True)):
        seen = own[max(0, length - window) if window else 0 :].float()
        keys, values = (part.repeat_interleave(heads // kv_heads, 1) for part in seen.chunk(2, 1))
        scores = torch.einsum("hd,shd->hs", query[row].float(), keys) * dim**-0.5
        exact = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
        assert_close(out[row], exact.reshape(-1))


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
    query = random_bf16(rows, heads + 2 * kv_heads, dim, seed=60)[:, :heads]
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
    joined = random_bf16(rows, heads + 2 * kv_heads, dim)
    angles = torch.randn(rows, 1, dim // 2, generator=torch.Generator().manual_seed(1))
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(BF16)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(BF16)
    exact = joined.float()
    rotate(exact[:, : heads + kv_heads], cos.float(), sin.float())
    cache = torch.full((8, 2 * kv_heads, dim), NAN, dtype=BF16)
    slots = torch.tensor([6, 0, 3])
    kernels.rotate_and_store(joined, cos, sin, cache, slots, heads)
    assert_close(joined, exact)
    assert torch.equal(cache[slots], joined[:, heads:])
    untouched = [slot for slot in range(8) if slot not in (6, 0, 3)]
    assert cache[untouched].isnan().all()


@pytest.mark.parametrize("width", [1, 16, 17, 1000, 32000])
def test_best_is_the_first_of_the_largest(kernels: CpuKernels, width: int) -> None:
    logits = random_bf16(7, width, scale=3.0)  # of few values, so that many tie at 32,000
    assert kernels.best(logits) == logits.float().numpy().argmax(-1).tolist()
    logits[1, width // 2] = logits[2, -1] = logits[3, 0] = logits[4].max() + 50
    assert kernels.best(logits) == logits.float().numpy().argmax(-1).tolist()
    assert kernels.best(logits.fill_(-2.0)) == [0] * 7


@pytest.mark.parametrize("at", [0, 15, 16, 20])
def test_there_is_no_best_beside_nan_or_infinity(kernels: CpuKernels, at: int) -> None:
    logits = random_bf16(5, 21)
    logits[1, at], logits[2, at], logits[3] = NAN, float("inf"), -float("inf")
    logits[4] = -float("inf")
    logits[4, at] = -1e30
    expected = int(logits[0].float().numpy().argmax())
    assert kernels.best(logits) == [expected, -1, -1, -1, at]

"""Attention over paged, chunked, mixed steps against dense attention written out in float64.

Shape suffixes: T tokens of one sequence, D hidden, H query heads, G key-value heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from model.attention import Attention, StepContext, decode_mask, prefill_mask
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.kv_size import block_bytes
from model.rope import Rope
from model.step_batch import Chunk, StepBatch, build_batch

CPU = torch.device("cpu")
HIDDEN = 24
LAYERS = 2
MAX_LEN = 80
THETA = 1e4


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    block_size: int = 4


# head_dim is hidden / heads in the first only; one, several and all query heads share keys.
SHAPES = [
    Shape(4, 2, 6),
    Shape(4, 4, 10),
    Shape(6, 1, 16, block_size=1),
    Shape(6, 2, 8, window=5),
    Shape(2, 1, 2, window=1, block_size=3),
    Shape(3, 3, 12, window=17, block_size=16),
]


def config_of(shape: Shape) -> ModelConfig:
    return ModelConfig(
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=8,
        num_experts=2,
        top_k=1,
        vocab_size=300,
        rms_norm_eps=1e-5,
        rope_theta=THETA,
        sliding_window=shape.window,
        max_position_embeddings=MAX_LEN,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


class World:
    """Two layers of attention, a poisoned cache, and sequences with rows of their own."""

    def __init__(self, shape: Shape, lengths: list[int], poison: float = 1e4) -> None:
        self.shape, self.config = shape, config_of(shape)
        self.random = torch.Generator().manual_seed(len(lengths) * 1000 + sum(lengths))
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.weights = [
            [self.randn(n, m) for n, m in ((q, HIDDEN), (kv, HIDDEN), (kv, HIDDEN), (HIDDEN, q))]
            for _ in range(LAYERS)
        ]
        self.layers = [Attention(self.config, *weights) for weights in self.weights]
        self.rope = Rope(shape.head_dim, THETA, MAX_LEN, torch.float32, CPU)
        self.x = [self.randn(length, HIDDEN) * 5 for length in lengths]
        per_sequence = -(-MAX_LEN // shape.block_size)
        num_blocks = per_sequence * len(lengths) + 1
        # Scattered tables; block 0, which pads short tables, belongs to nobody.
        order = (torch.randperm(num_blocks - 1, generator=self.random) + 1).tolist()
        self.tables = [
            order[i * per_sequence : (i + 1) * per_sequence] for i in range(len(lengths))
        ]
        self.cache = KVCache(self.config, num_blocks, shape.block_size, torch.float32, CPU)
        everything = torch.arange(num_blocks * shape.block_size)
        for layer in range(LAYERS):
            garbage = torch.full((len(everything), shape.kv_heads, shape.head_dim), poison)
            self.cache.write(layer, everything, torch.cat((garbage, -garbage), 1))
        self.done = [0] * len(lengths)
        self.out = [
            torch.full((LAYERS, length, HIDDEN), torch.nan, dtype=torch.float64)
            for length in lengths
        ]

    def randn(self, *size: int) -> torch.Tensor:
        scale: float = size[-1] ** -0.5
        return torch.randn(*size, generator=self.random) * scale

    def run(self, decodes: list[int], prefills: list[tuple[int, int]], times: int = 1) -> None:
        """One step: the next row of each in `decodes`, the next n of each (sequence, n)."""
        parts = [(s, 1) for s in decodes] + prefills
        chunks = [
            Chunk([0] * n, self.done[s], self.tables[s][: self.blocks(self.done[s] + n)], True)
            for s, n in parts
        ]
        batch = build_batch(
            chunks[: len(decodes)], chunks[len(decodes) :], self.shape.block_size, CPU
        )
        x = torch.cat([self.x[s][self.done[s] : self.done[s] + n] for s, n in parts])
        for _ in range(times):
            for index, layer in enumerate(self.layers):
                y = layer(index, x, self.context(batch), self.cache)
                row = 0
                for s, n in parts:
                    self.out[s][index, self.done[s] : self.done[s] + n] = y[row : row + n].double()
                    row += n
        for s, n in parts:
            self.done[s] += n

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.shape.block_size)

    def context(self, batch: StepBatch) -> StepContext:
        window = self.shape.window
        cos, sin = self.rope.tables(batch.positions_T)
        slots = batch.decode_blocks_BN.shape[1] * self.shape.block_size
        return StepContext(
            batch,
            cos,
            sin,
            decode_mask(batch.decode_lengths_B, slots, window, torch.float32)
            if batch.num_decodes
            else None,
            tuple(prefill_mask(chunk, window, torch.float32, CPU) for chunk in batch.prefills),
        )

    def check(self) -> None:
        for sequence, x in enumerate(self.x):
            assert self.done[sequence] == len(x)
            for layer, weights in enumerate(self.weights):
                want = dense_attention(self.shape, x, weights)
                torch.testing.assert_close(self.out[sequence][layer], want, rtol=0, atol=3e-5)


def dense_attention(shape: Shape, x_TD: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Every query against every key it may see, one pair at a time in spirit: [T, D], float64."""
    q_w, k_w, v_w, o_w = (weight.double() for weight in weights)
    x = x_TD.double()
    length, d = len(x), shape.head_dim
    position = torch.arange(length, dtype=torch.float64)
    frequency = THETA ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turn = torch.polar(
        torch.ones(length, d // 2, dtype=torch.float64), position[:, None] * frequency
    )

    def turned(flat: torch.Tensor, heads: int) -> torch.Tensor:
        pairs = flat.view(length, heads, 2, d // 2)
        spun = torch.complex(pairs[:, :, 0], pairs[:, :, 1]) * turn[:, None]
        return torch.cat((spun.real, spun.imag), -1)

    query, key = turned(x @ q_w.T, shape.heads), turned(x @ k_w.T, shape.kv_heads)
    value = (x @ v_w.T).view(length, shape.kv_heads, d)
    heads = []
    for head in range(shape.heads):
        shared = head // (shape.heads // shape.kv_heads)
        score = query[:, head] @ key[:, shared].T / d**0.5
        back = position[:, None] - position
        visible = back >= 0
        if shape.window is not None:
            visible &= back < shape.window
        weight = torch.where(visible, score, -torch.inf).softmax(-1)
        heads.append(weight @ value[:, shared])
    return torch.cat(heads, -1) @ o_w.T


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_cut_at_every_place(shape: Shape) -> None:
    length = 11
    for cut in range(length + 1):
        world = World(shape, [length])
        for size in (cut, length - cut):
            if size:
                world.run([], [(0, size)])
        world.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_one_row_at_a_time(shape: Shape) -> None:
    world = World(shape, [23])
    world.run([], [(0, 1)])
    for _ in range(22):
        world.run([0], [])
    world.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_decodes_and_chunks_of_very_different_lengths_in_one_step(shape: Shape) -> None:
    world = World(shape, [79, 5, 34, 18, 2])
    world.run([], [(0, 33), (4, 1)])
    world.run([4], [(0, 40), (1, 3)])
    world.run([0, 1], [(2, 16), (3, 1)])
    world.run([0], [(2, 1), (3, 9)])
    world.run([1, 2, 0], [(3, 7)])
    world.run([2, 3, 0], [])
    world.run([0, 2], [])
    while world.done[2] < 34:
        world.run([2] + [0] * (world.done[0] < 79), [])
    world.check()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("poison", [0.0, 1e4, -1e30, 1e30])
def test_what_unused_slots_hold_does_not_matter(shape: Shape, poison: float) -> None:
    # Any finite value: a hidden slot's weight is exactly 0, and only 0 * inf or NaN is not 0.
    world = World(shape, [9, 30], poison)
    world.run([], [(0, 4), (1, 20)])
    world.run([0, 1], [])
    world.run([0], [(1, 5)])
    world.run([1, 0], [])
    world.run([0], [(1, 3)])
    world.run([0], [])
    world.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_can_run_again(shape: Shape) -> None:
    world = World(shape, [14, 21])
    for decodes, prefills in [
        ([], [(0, 12), (1, 9)]),
        ([0], [(1, 11)]),
        ([0, 1], []),
    ]:
        world.run(decodes, prefills, times=3)
    world.check()


def test_a_step_writes_its_own_slots_only() -> None:
    world = World(SHAPES[0], [13, 13])
    world.run([], [(0, 13), (1, 6)])
    everything = torch.arange(world.cache.num_blocks)[None]
    before = [world.cache.gather(layer, everything) for layer in range(LAYERS)]
    world.run([], [(1, 7)])
    size = world.shape.block_size
    mine = {world.tables[1][p // size] * size + p % size for p in range(6, 13)}
    others = [slot for slot in range(world.cache.num_blocks * size) if slot not in mine]
    for layer in range(LAYERS):
        for old, new in zip(before[layer], world.cache.gather(layer, everything), strict=True):
            assert torch.equal(old[0, others], new[0, others])
            assert not torch.equal(old[0, sorted(mine)], new[0, sorted(mine)])


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_the_cache_takes_the_bytes_it_is_said_to(name: str) -> None:
    config, dtype = config_of(SHAPES[2]), getattr(torch, name)
    per_block = block_bytes(config, 16, name)
    assert per_block == 2 * LAYERS * 16 * 1 * 16 * dtype.itemsize
    assert KVCache(config, 7, 16, dtype, CPU).num_bytes == 7 * per_block


def test_a_batch_lays_out_rows_positions_slots_and_samples() -> None:
    batch = build_batch(
        [Chunk([11], 4, [9, 3], True), Chunk([12], 3, [5], True)],
        [Chunk([21, 22, 23], 2, [7, 1, 8], False), Chunk([31], 0, [2], True)],
        block_size=4,
        device=CPU,
    )
    assert batch.token_ids_T.tolist() == [11, 12, 21, 22, 23, 31]
    assert batch.positions_T.tolist() == [4, 3, 2, 3, 4, 0]
    assert batch.slots_T.tolist() == [12, 23, 30, 31, 4, 8]
    assert batch.decode_lengths_B.tolist() == [5, 4]
    assert batch.decode_blocks_BN.tolist() == [[9, 3], [5, 5]]
    assert [(p.row, p.num_rows, p.start) for p in batch.prefills] == [(2, 3, 2), (5, 1, 0)]
    assert [p.blocks_1N.tolist() for p in batch.prefills] == [[[7, 1]], [[2]]]
    assert batch.sample_rows_C.tolist() == [0, 1, 5]
    assert (batch.num_rows, batch.num_decodes) == (6, 2)

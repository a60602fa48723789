"""A layer in one call of the library against its parts in turn: the same bits.

Shape suffixes: T rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from model.attention import Attention, StepContext
from model.config import ModelConfig
from model.cpu_kernels.library import CpuKernels
from model.decode_layers import DecodeStep, decode_layers
from model.decoder_weights import DecoderLayer, DecoderWeights
from model.feed_forward import Choice
from model.gate import Gate
from model.kv_cache import KVCache
from model.norm import RMSNorm
from model.projection import Factors, StoredMatrix
from model.rope import Rope
from model.step_batch import Chunk, build_batch
from tests.compiled_kernels import kernels_in_use, variants_and_threads

BF16, CPU = torch.bfloat16, torch.device("cpu")
LAYERS, BLOCK, MAX_LEN = 2, 4, 64


@dataclass(frozen=True)
class Shape:
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 8
    top_k: int = 2
    window: int | None = None
    bits: int = 16


SHAPES = [
    Shape(64, 4, 2, 32),
    Shape(70, 6, 1, 32, experts=5, top_k=3, window=6),  # fills neither a vector nor a panel
    Shape(40, 2, 2, 64, experts=0, top_k=0),
    Shape(64, 4, 2, 32, bits=8),
    Shape(160, 4, 1, 32, bits=4, window=3),
]


@pytest.fixture(params=variants_and_threads(1, 2), ids=str, autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with kernels_in_use(*request.param) as found:
        yield found


class Model:
    """Random weights, and a cache that is NaN but for what sequences have in it."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.config = ModelConfig(
            hidden_size=shape.hidden,
            num_layers=LAYERS,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            intermediate_size=8,
            num_experts=shape.experts,
            top_k=shape.top_k,
            vocab_size=300,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            sliding_window=shape.window,
            max_position_embeddings=MAX_LEN,
            bos_token_id=1,
            eos_token_ids=(2,),
        )
        q, kv, hidden = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
            shape.hidden,
        )
        self.matrices: list[list[StoredMatrix]] = [
            [self.randn(*size) for size in ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q))]
            for _ in range(LAYERS)
        ]

    def randn(self, *size: int) -> torch.Tensor:
        scale: float = size[-1] ** -0.5
        return (torch.randn(*size, generator=self._random) * scale).to(BF16)

    def weights(self) -> DecoderWeights:
        shape = self.shape
        layers = tuple(
            DecoderLayer(
                RMSNorm(self.randn(shape.hidden) + 1, 1e-5),
                Attention(self.config, *matrices, bits=shape.bits),
                RMSNorm(self.randn(shape.hidden) + 1, 1e-5),
            )
            for matrices in self.matrices
        )
        gates = tuple(
            Gate(self.randn(shape.experts, shape.hidden), shape.top_k)
            for _ in range(LAYERS)
            if shape.experts
        )
        table = self.randn(300, shape.hidden)
        return DecoderWeights(table, layers, gates, (), layers[0].ffn_norm, None, 0)

    def cache(self, num_blocks: int, lengths: list[int], tables: list[list[int]]) -> KVCache:
        cache = KVCache(self.config, num_blocks, BLOCK, BF16, CPU)
        for layer in range(LAYERS):
            storage = cache.layer(layer)
            storage.fill_(torch.nan)
            for length, table in zip(lengths, tables, strict=True):
                slots = [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(length)]
                storage[slots] = self.randn(length, *storage.shape[1:])
        return cache


def in_turn(
    weights: DecoderWeights,
    layer: int,
    x_TD: torch.Tensor,
    added_TD: torch.Tensor | None,
    context: StepContext,
    cache: KVCache,
) -> tuple[torch.Tensor, torch.Tensor, Choice | None]:
    """What the layer before ended with, attention, norm and gate, each by itself."""
    one = weights.layers[layer]
    if added_TD is not None:
        x_TD = x_TD + added_TD
    x_TD = x_TD + one.attention(layer, one.input_norm(x_TD), context, cache)
    normed_TD = one.ffn_norm(x_TD)
    return x_TD, normed_TD, weights.gates[layer](normed_TD) if weights.gates else None


@pytest.mark.parametrize("lengths", [[0], [9], [3, 0, 33, 16, 15], list(range(20))])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_in_one_call_gives_the_same_bits(shape: Shape, lengths: list[int]) -> None:
    """`lengths`: tokens that the cache holds of each sequence before its next row."""
    model = Model(shape)
    weights = model.weights()
    per_sequence = MAX_LEN // BLOCK
    order = torch.randperm(per_sequence * len(lengths), generator=model._random).tolist()
    tables = [order[i * per_sequence : (i + 1) * per_sequence] for i in range(len(lengths))]
    ours = model.cache(len(order), lengths, tables)
    theirs = KVCache(model.config, len(order), BLOCK, BF16, CPU)
    for layer in range(LAYERS):
        theirs.layer(layer).copy_(ours.layer(layer))
    batch = build_batch(
        [Chunk([7], at, table, True) for at, table in zip(lengths, tables, strict=True)],
        [],
        BLOCK,
        CPU,
    )
    rope = Rope(shape.head_dim, 1e4, MAX_LEN, BF16, CPU)
    context = StepContext(batch, *rope.tables(batch.positions_T), None, ())
    layers = decode_layers(model.config, weights)
    assert layers is not None
    step = DecodeStep(layers, context, ours)

    x_TD = model.randn(len(lengths), shape.hidden) * 8
    expected_TD, added_TD = x_TD.clone(), None
    for layer in range(LAYERS):
        normed_TD, (ids_TK, weights_TK) = step.run(layer, x_TD, added_TD)
        expected_TD, expected_normed_TD, choice = in_turn(
            weights, layer, expected_TD, added_TD, context, theirs
        )
        assert x_TD.isfinite().all()
        assert torch.equal(x_TD, expected_TD)
        assert torch.equal(normed_TD, expected_normed_TD)
        if choice is None:
            assert ids_TK.shape == (len(lengths), 0)
        else:
            assert torch.equal(ids_TK, choice[0])
            assert torch.equal(weights_TK, choice[1])
        assert torch.equal(
            ours.layer(layer).view(torch.int16), theirs.layer(layer).view(torch.int16)
        )
        added_TD = model.randn(len(lengths), shape.hidden)


@pytest.mark.parametrize("which", [0, 3])
def test_a_layer_with_factors_is_left_to_its_parts(which: int) -> None:
    model = Model(SHAPES[0])
    outputs, inputs = model.matrices[1][which].shape
    model.matrices[1][which] = Factors(model.randn(8, inputs), model.randn(outputs, 8))
    assert decode_layers(model.config, model.weights()) is None


def test_heads_that_the_kernels_do_not_take_are_left_to_torch() -> None:
    model = Model(Shape(64, 4, 2, 16))
    assert decode_layers(model.config, model.weights()) is None

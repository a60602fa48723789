"""Micro-batches: a cut step is the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.decoder import Decoder
from model.dispatch import LocalDispatcher
from model.expert_load import ExpertLoad
from model.feed_forward import MixtureOfExperts
from model.kv_cache import KVCache
from model.loading import load_decoder, load_experts
from model.micro_batch import even_sizes, rows_in_order, split_batch
from model.rope import Rope
from model.step_batch import Chunk, StepBatch, build_batch
from tests.checkpoints import make_checkpoint

CPU = torch.device("cpu")
BLOCK = 4
NUM_BLOCKS = 64


@pytest.mark.parametrize(
    ("rows", "parts", "want"),
    [
        (0, 2, (0, 0)),
        (1, 3, (1, 0, 0)),
        (5, 2, (3, 2)),
        (5, 3, (2, 2, 1)),
        (6, 3, (2, 2, 2)),
        (7, 1, (7,)),
    ],
)
def test_sizes_are_even(rows: int, parts: int, want: tuple[int, ...]) -> None:
    assert even_sizes(rows, parts) == want


def lay_out(decode_lengths: list[int], prompts: list[tuple[int, int, bool]]) -> StepBatch:
    """Decodes at such positions and chunks (start, rows, samples), each with blocks of its own."""
    chunks, first = [], 0
    for start, size, samples in [(at, 1, True) for at in decode_lengths] + prompts:
        used = -(-(start + size) // BLOCK)
        tokens = [(7 * (first + start) + i) % 500 + 1 for i in range(size)]
        # A block more than is needed, as sequences that are to grow may have.
        chunks.append(Chunk(tokens, start, list(range(first, first + used + 1)), samples))
        first += used + 1
    assert first <= NUM_BLOCKS
    count = len(decode_lengths)
    return build_batch(chunks[:count], chunks[count:], BLOCK, CPU)


STEPS = st.tuples(
    st.lists(st.integers(0, 12), max_size=6),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 11), st.booleans()), max_size=4),
).filter(lambda step: bool(step[0] or step[1]))


@given(STEPS, st.integers(1, 3))
def test_the_parts_have_every_row_once_and_know_where_it_is(
    step: tuple[list[int], list[tuple[int, int, bool]]], count: int
) -> None:
    batch = lay_out(*step)
    parts = split_batch(batch, count, BLOCK)
    sizes = [part.batch.num_rows for part in parts]
    assert sizes == [size for size in even_sizes(batch.num_rows, count) if size]
    decodes = [part.batch.num_decodes for part in parts]
    assert sum(decodes) == batch.num_decodes
    assert max(decodes) - min(decodes) <= 1
    order = rows_in_order(parts)
    for name in ("token_ids_T", "positions_T", "slots_T"):
        everything = torch.cat([getattr(part.batch, name) for part in parts])
        assert torch.equal(everything[order], getattr(batch, name)), name
    for part in parts:
        one = part.batch
        covered = list(range(one.num_decodes))
        for row in range(one.num_decodes):
            length = int(one.decode_lengths_B[row])
            block = int(one.decode_blocks_BN[row, (length - 1) // BLOCK])
            assert length - 1 == one.positions_T[row]
            assert block * BLOCK + (length - 1) % BLOCK == one.slots_T[row]
        for chunk in one.prefills:
            rows = range(chunk.row, chunk.row + chunk.num_rows)
            covered += rows
            positions = torch.arange(chunk.start, chunk.start + chunk.num_rows)
            assert torch.equal(one.positions_T[list(rows)], positions)
            blocks = chunk.blocks_1N[0, positions // BLOCK]
            assert torch.equal(one.slots_T[list(rows)], blocks * BLOCK + positions % BLOCK)
            assert chunk.blocks_1N.shape[1] == -(-int(positions[-1] + 1) // BLOCK)
        assert covered == list(range(one.num_rows))


def test_a_cut_chunk_is_two_chunks_the_earlier_first() -> None:
    batch = lay_out([5], [(3, 7, True)])
    first, second = split_batch(batch, 2, BLOCK)
    assert [(c.row, c.num_rows, c.start) for c in first.batch.prefills] == [(1, 3, 3)]
    assert [(c.row, c.num_rows, c.start) for c in second.batch.prefills] == [(0, 4, 6)]
    assert (first.batch.num_decodes, second.batch.num_decodes) == (1, 0)


class TinyModel:
    """A decoder with all experts here, and a cache that holds what came before a step."""

    def __init__(self, directory: Path) -> None:
        config = ModelConfig.from_dir(directory)
        dtype = getattr(torch, config.dtype)
        checkpoint = Checkpoint(directory)
        held = [(i, e) for i in range(config.num_layers) for e in range(config.num_experts)]
        self.config, self.dtype = config, dtype
        self.load = ExpertLoad(
            config.num_layers, config.num_experts, config.top_k, NUM_BLOCKS * BLOCK, CPU
        )
        weights = load_decoder(checkpoint, config, dtype, CPU)
        dispatcher = LocalDispatcher(load_experts(checkpoint, config, held, dtype, CPU))
        self.decoder = Decoder(
            config,
            weights,
            MixtureOfExperts(weights.gates, dispatcher, self.load),
            Rope(config.head_dim, config.rope_theta, 256, dtype, CPU),
        )

    @torch.inference_mode()
    def run(self, batch: StepBatch, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, and the cache afterwards: it held noise before."""
        cache = KVCache(self.config, NUM_BLOCKS, BLOCK, self.dtype, CPU)
        random = torch.Generator().manual_seed(3)
        cache._kv_LSJd.copy_(torch.randn(cache._kv_LSJd.shape, generator=random))
        self.load.reset()
        return self.decoder.forward(batch, cache, count), cache._kv_LSJd


@pytest.fixture(scope="module", params=["plain", "sliding window", "bfloat16"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if request.param == "bfloat16" else "float32"
    window = 6 if request.param == "sliding window" else None
    directory = tmp_path_factory.mktemp("model")
    # Heads of 32: bf16 is for the compiled kernels, where there are any.
    make_checkpoint(directory, layers=3, head_dim=32, dtype=dtype, sliding_window=window)
    return TinyModel(directory)


@pytest.mark.parametrize("count", [2, 3])
@settings(max_examples=25, deadline=None)
@given(step=STEPS)
def test_a_cut_step_gives_the_same_logits_and_the_same_cache(
    tiny: TinyModel, count: int, step: tuple[list[int], list[tuple[int, int, bool]]]
) -> None:
    batch = lay_out(*step)
    want, want_cache = tiny.run(batch, 1)
    want_load, want_repeats = tiny.load.totals(), tiny.load.repeats()
    got, cache = tiny.run(batch, count)
    assert got.shape == want.shape
    assert tiny.load.totals() == want_load
    assert tiny.load.repeats().pairs == want_repeats.pairs
    # In bf16 a chunk that is cut sums in another order; an expert may then be chosen otherwise.
    if tiny.dtype == torch.float32:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert tiny.load.repeats() == want_repeats
        torch.testing.assert_close(cache, want_cache, rtol=1e-4, atol=1e-4)
    elif not batch.prefills:
        assert torch.equal(got, want)
        assert torch.equal(cache, want_cache)

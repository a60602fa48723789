"""The rows of one step as the decoder reads them: decode rows first, then prefill chunks.

Shape suffixes: T rows, B decoding sequences, N blocks, C sequences whose last row is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from model.expert_repeats import NONE


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence that run in this step.

    `block_ids` are the sequence's from its block number `first_block` on, up to the one of the
    last token at least. What no row sees any more, behind a sliding window, need not be there.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    samples: bool
    first_block: int = 0


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Rows [row, row + num_rows) are places [start, start + num_rows) of one block table."""

    row: int
    num_rows: int
    start: int
    blocks_1N: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's rows. Rows 0..B-1 decode one token each; `prefills` cover the others in order.

    Block tables begin with the first block that a sequence still has, and lengths and starts
    count from there: attention depends on how far positions are apart, and RoPE has `positions_T`.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    previous_slots_T: torch.Tensor  # of the token before each row's in its sequence, or NONE
    decode_blocks_BN: torch.Tensor
    decode_lengths_B: torch.Tensor  # tokens in the table, the row's own included
    prefills: tuple[PrefillChunk, ...]
    sample_rows_C: torch.Tensor

    @property
    def num_rows(self) -> int:
        """Rows in the step."""
        return self.token_ids_T.shape[0]

    @property
    def num_decodes(self) -> int:
        """Rows that decode."""
        return self.decode_lengths_B.shape[0]


def build_batch(
    decodes: Sequence[Chunk], prefills: Sequence[Chunk], block_size: int, device: torch.device
) -> StepBatch:
    """Lay out chunks as rows. Every decode chunk has exactly one token."""
    num_decodes = len(decodes)
    num_rows = num_decodes + sum(len(chunk.token_ids) for chunk in prefills)
    num_samples = num_decodes + sum(chunk.samples for chunk in prefills)
    # One array for all of them, and so one copy to another device.
    sizes = [num_rows] * 4 + [num_decodes, num_samples]
    flat = np.empty(sum(sizes), np.int64)
    tokens, positions, slots, previous, lengths, samples = _cut(flat, sizes)
    blocks = np.empty((0, 0), np.int64)
    if num_decodes:
        # By plain numbers: half the time of as many calls of numpy's for one row, the same for 64.
        rows = zip(*[_decode_row(chunk, block_size) for chunk in decodes], strict=True)
        columns = tokens, positions, slots, previous, lengths
        for column, values in zip(columns, rows, strict=True):
            column[:num_decodes] = values
        samples[:num_decodes] = range(num_decodes)
        blocks = _tables([chunk.block_ids for chunk in decodes], lengths, block_size)

    laid_out = []
    row, sample = num_decodes, num_decodes
    for chunk in prefills:
        size = len(chunk.token_ids)
        start = chunk.start - chunk.first_block * block_size
        end = start + size
        tokens[row : row + size] = chunk.token_ids
        where = np.arange(start, end)
        positions[row : row + size] = np.arange(chunk.start, chunk.start + size)
        table = np.asarray(chunk.block_ids[: -(-end // block_size)], np.int64)
        slots[row : row + size] = table[where // block_size] * block_size + where % block_size
        previous[row] = _slot(chunk.block_ids, start - 1, block_size)
        previous[row + 1 : row + size] = slots[row : row + size - 1]
        laid_out.append(
            PrefillChunk(row, size, start, torch.from_numpy(table).unsqueeze(0).to(device))
        )
        row += size
        if chunk.samples:
            samples[sample] = row - 1
            sample += 1

    tokens_T, positions_T, slots_T, previous_T, lengths_B, samples_C = (
        torch.from_numpy(flat).to(device).split(sizes)
    )
    return StepBatch(
        token_ids_T=tokens_T,
        positions_T=positions_T,
        slots_T=slots_T,
        previous_slots_T=previous_T,
        decode_blocks_BN=torch.from_numpy(blocks).to(device),
        decode_lengths_B=lengths_B,
        prefills=tuple(laid_out),
        sample_rows_C=samples_C,
    )


def _cut(flat: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    ends = list(accumulate(sizes))
    return [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _decode_row(chunk: Chunk, block_size: int) -> tuple[int, int, int, int, int]:
    """Its token, position, slot, the slot before, and the tokens in its table."""
    place = chunk.start - chunk.first_block * block_size
    return (
        chunk.token_ids[0],
        chunk.start,
        _slot(chunk.block_ids, place, block_size),
        _slot(chunk.block_ids, place - 1, block_size),
        place + 1,
    )


def _slot(block_ids: Sequence[int], place: int, block_size: int) -> int:
    """Where the token at a place of a block table lies; NONE before the first."""
    if place < 0:
        return NONE
    return block_ids[place // block_size] * block_size + place % block_size


def _tables(block_ids: Sequence[Sequence[int]], lengths: np.ndarray, block_size: int) -> np.ndarray:
    widths = [(length - 1) // block_size + 1 for length in lengths.tolist()]
    blocks = np.empty((len(widths), max(widths)), np.int64)
    for row, used in enumerate(widths):
        blocks[row, :used] = block_ids[row][:used]
        blocks[row, used:] = blocks[row, used - 1]  # read, and weighed by 0
    return blocks

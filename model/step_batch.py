"""The rows of one step as the decoder reads them: decode rows first, then prefill chunks.

Shape suffixes: T rows, B decoding sequences, N blocks, C sequences whose last row is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    token_ids = np.empty(num_rows, np.int64)
    positions = np.empty(num_rows, np.int64)
    slots = np.empty(num_rows, np.int64)
    previous = np.empty(num_rows, np.int64)
    sample_rows = list(range(num_decodes))

    if num_decodes:
        token_ids[:num_decodes] = [chunk.token_ids[0] for chunk in decodes]
        starts = np.fromiter((chunk.start for chunk in decodes), np.int64, num_decodes)
        positions[:num_decodes] = starts
        gone = np.fromiter((chunk.first_block for chunk in decodes), np.int64, num_decodes)
        starts -= gone * block_size
        widths = starts // block_size + 1
        width = int(widths.max())
        blocks = np.empty((num_decodes, width), np.int64)
        for row, chunk in enumerate(decodes):
            used = widths[row]
            blocks[row, :used] = chunk.block_ids[:used]
            blocks[row, used:] = blocks[row, used - 1]  # read, and weighed by 0
        last = blocks[np.arange(num_decodes), widths - 1]
        slots[:num_decodes] = last * block_size + starts % block_size
        lengths = starts + 1
        before = np.maximum(starts - 1, 0)
        held = blocks[np.arange(num_decodes), before // block_size]
        previous[:num_decodes] = held * block_size + before % block_size
        previous[:num_decodes][starts == 0] = NONE
    else:
        blocks = np.zeros((0, 0), np.int64)
        lengths = np.zeros(0, np.int64)

    laid_out = []
    row = num_decodes
    for chunk in prefills:
        size = len(chunk.token_ids)
        start = chunk.start - chunk.first_block * block_size
        end = start + size
        token_ids[row : row + size] = chunk.token_ids
        where = np.arange(start, end)
        positions[row : row + size] = np.arange(chunk.start, chunk.start + size)
        table = np.asarray(chunk.block_ids[: -(-end // block_size)], np.int64)
        slots[row : row + size] = table[where // block_size] * block_size + where % block_size
        previous[row + 1 : row + size] = slots[row : row + size - 1]
        last = start - 1
        previous[row] = NONE
        if last >= 0:
            previous[row] = table[last // block_size] * block_size + last % block_size
        laid_out.append(
            PrefillChunk(row, size, start, torch.from_numpy(table).unsqueeze(0).to(device))
        )
        row += size
        if chunk.samples:
            sample_rows.append(row - 1)

    return StepBatch(
        token_ids_T=torch.from_numpy(token_ids).to(device),
        positions_T=torch.from_numpy(positions).to(device),
        slots_T=torch.from_numpy(slots).to(device),
        previous_slots_T=torch.from_numpy(previous).to(device),
        decode_blocks_BN=torch.from_numpy(blocks).to(device),
        decode_lengths_B=torch.from_numpy(lengths).to(device),
        prefills=tuple(laid_out),
        sample_rows_C=torch.tensor(sample_rows, dtype=torch.int64, device=device),
    )

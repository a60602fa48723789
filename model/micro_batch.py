"""Cutting a step's rows into micro-batches: experts work on one while attention does another.

How many rows each has follows from their number alone: expert ranks work it out from the step
headers. Shape suffixes: T rows, B decoding sequences, N blocks, C sampled rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.step_batch import PrefillChunk, StepBatch

MOST_MICRO_BATCHES = 3


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a step as a batch of their own, and which of the step's rows they are."""

    batch: StepBatch
    rows_T: torch.Tensor


def even_sizes(num_rows: int, parts: int) -> tuple[int, ...]:
    """Rows of each of `parts` micro-batches: as even as can be, the larger ones first."""
    each, rest = divmod(num_rows, parts)
    return tuple(each + (index < rest) for index in range(parts))


def split_batch(batch: StepBatch, parts: int, block_size: int) -> list[MicroBatch]:
    """Cut a step into `parts` micro-batches of `even_sizes`; those without rows are left out.

    Decodes are dealt out as evenly as rows are. A prefill chunk that is cut becomes two, the
    earlier positions first: in each layer the later ones find the others' keys in the cache.
    """
    sizes = even_sizes(batch.num_rows, parts)
    decode_sizes = even_sizes(batch.num_decodes, parts)
    made = []
    decode, prefill = 0, batch.num_decodes
    for size, num_decodes in zip(sizes, decode_sizes, strict=True):
        num_prefills = size - num_decodes
        if size:
            decodes = range(decode, decode + num_decodes)
            prefills = range(prefill, prefill + num_prefills)
            made.append(_cut(batch, decodes, prefills, block_size))
        decode += num_decodes
        prefill += num_prefills
    return made


def _cut(batch: StepBatch, decodes: range, prefills: range, block_size: int) -> MicroBatch:
    device = batch.token_ids_T.device
    rows_T = torch.tensor([*decodes, *prefills], device=device)
    here = slice(decodes.start, decodes.stop)
    return MicroBatch(
        StepBatch(
            token_ids_T=batch.token_ids_T[rows_T],
            positions_T=batch.positions_T[rows_T],
            slots_T=batch.slots_T[rows_T],
            previous_slots_T=batch.previous_slots_T[rows_T],
            decode_blocks_BN=batch.decode_blocks_BN[here],
            decode_lengths_B=batch.decode_lengths_B[here],
            prefills=_cut_chunks(batch.prefills, prefills, len(decodes), block_size),
            sample_rows_C=batch.sample_rows_C[:0],  # the whole step's are sampled together
        ),
        rows_T,
    )


def _cut_chunks(
    chunks: Sequence[PrefillChunk], rows: range, first_row: int, block_size: int
) -> tuple[PrefillChunk, ...]:
    """What of the chunks lies in `rows` of the step, which begin at `first_row` here."""
    cut = []
    for chunk in chunks:
        begin, end = max(chunk.row, rows.start), min(chunk.row + chunk.num_rows, rows.stop)
        if begin < end:
            start = chunk.start + begin - chunk.row
            num_blocks = -(-(start + end - begin) // block_size)
            cut.append(
                PrefillChunk(
                    first_row + begin - rows.start,
                    end - begin,
                    start,
                    chunk.blocks_1N[:, :num_blocks],
                )
            )
    return tuple(cut)


def rows_in_order(parts: Sequence[MicroBatch]) -> torch.Tensor:
    """[T]: where each row of the step lies when the parts' rows stand one after another."""
    return torch.cat([part.rows_T for part in parts]).argsort()

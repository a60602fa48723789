"""Repeats of consecutive tokens: against a scan of whole sequences, and against chance."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cpu_kernels.repeats import KernelExpertRepeats
from model.expert_load import ExpertLoad
from model.expert_repeats import ExpertRepeats, random_rates
from model.step_batch import Chunk, build_batch
from tests.compiled_kernels import compiled_library

CPU = torch.device("cpu")
LAYERS, EXPERTS, BLOCK = 3, 8, 4


def choices(layer: int, sequence: int, position: int, top_k: int) -> list[int]:
    """What the gate would choose: anything, but always the same for the same token."""
    return random.Random(f"{layer}/{sequence}/{position}").sample(range(EXPERTS), top_k)


def run(load: ExpertLoad, chunks: list[tuple[int, int, int]], top_k: int, decodes: int) -> None:
    """One step; a chunk is (sequence, start, tokens), the first `decodes` of them decode."""
    laid = [
        Chunk([0] * size, start, range(sequence * 16, sequence * 16 + 16), True)
        for sequence, start, size in chunks
    ]
    batch = build_batch(laid[:decodes], laid[decodes:], BLOCK, CPU)
    rows = [(s, start + i) for s, start, size in chunks for i in range(size)]
    for layer in range(LAYERS):
        ids = torch.tensor([choices(layer, s, position, top_k) for s, position in rows])
        load.record(layer, ids)
    load.finish_step(batch.slots_T, batch.previous_slots_T)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    top_k=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_steps_in_any_cut_count_what_a_scan_of_the_sequences_counts(
    lengths: list[int], top_k: int, seed: int
) -> None:
    """Prompts in chunks, decodes among them, sequences that pause: the order tells nothing."""
    load = ExpertLoad(LAYERS, EXPERTS, top_k, 4 * 16 * BLOCK, CPU)
    done, chance = [0] * len(lengths), random.Random(seed)
    while open_ := [i for i, length in enumerate(lengths) if done[i] < length]:
        picked = chance.sample(open_, chance.randint(1, len(open_)))
        sizes = {i: chance.randint(1, lengths[i] - done[i]) for i in picked}
        picked.sort(key=lambda i: sizes[i])
        chunks = [(i, done[i], sizes[i]) for i in picked]
        run(load, chunks, top_k, decodes=sum(size == 1 for size in sizes.values()))
        for i, size in sizes.items():
            done[i] += size
    told = load.repeats()
    assert told.pairs == sum(length - 1 for length in lengths)
    for layer in range(LAYERS):
        pairs = [
            (choices(layer, i, position, top_k), choices(layer, i, position + 1, top_k))
            for i, length in enumerate(lengths)
            for position in range(length - 1)
        ]
        assert told.first[layer] == sum(a[0] == b[0] for a, b in pairs)
        assert told.any[layer] == sum(bool({*a} & {*b}) for a, b in pairs)
    load.reset()
    assert (load.repeats().pairs, sum(load.repeats().any)) == (0, 0)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 5)), min_size=1, max_size=40),
    cuts=st.sets(st.integers(1, 39)),
    seed=st.integers(0, 1000),
)
def test_slots_that_are_given_to_others_tell_of_their_holder_at_the_time(
    rows: list[tuple[int, int]], cuts: set[int], seed: int
) -> None:
    """However much is counted at once: each row looks at its slot, then writes its own."""
    chosen: dict[int, list[int]] = {}
    first = both = 0
    ids = [random.Random(f"{seed}/{i}").sample(range(4), 2) for i in range(len(rows))]
    for (slot, previous), mine in zip(rows, ids, strict=True):
        before = chosen.get(previous, [-1, -1])
        first += mine[0] == before[0]
        both += bool({*mine} & {*before})
        chosen[slot] = mine
    load = ExpertLoad(1, 4, 2, 6, CPU)
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for begin, end in pairwise(edges):
        load.record(0, torch.tensor(ids[begin:end]))
        slots, previous_slots = torch.tensor(rows[begin:end]).unbind(1)
        load.finish_step(slots, previous_slots)
        if (begin + seed) % 3 == 0:
            load.totals()  # counts what is kept so far
    told = load.repeats()
    assert (told.pairs, told.first, told.any) == (
        sum(previous >= 0 for _, previous in rows),
        (first,),
        (both,),
    )


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(1, 2, 1), (3, 8, 2), (5, 127, 4)])
def test_the_compiled_scan_and_torch_count_the_same(layers: int, experts: int, top_k: int) -> None:
    """The scan is what the tests above hold, where it is compiled; torch's sorting is elsewhere."""
    ours = KernelExpertRepeats(compiled_library(), layers, experts, top_k, 12)
    torchs = ExpertRepeats(layers, experts, top_k, 12, CPU)
    random_ = torch.Generator().manual_seed(layers)
    for rows in (1, 40, 7, 1, 200):
        ids = torch.rand(rows, layers, experts, generator=random_).argsort(2)[:, :, :top_k]
        slots = torch.randint(12, (rows, 2), generator=random_)
        previous = slots[:, 1] - torch.randint(2, (rows,), generator=random_)  # some are NONE
        for one in (ours, torchs):
            one.count(ids.transpose(0, 1), slots[:, 0], previous)
        assert ours.totals() == torchs.totals()
    assert 0 < ours.totals().pairs < 249


def test_a_random_gate_repeats_as_often_as_table_5_says() -> None:
    first, both = random_rates(8, 2)
    assert first == 1 / 8
    assert both == pytest.approx(1 - 6 / 8 * 5 / 7)
    assert f"{first:.1%} {both:.1%}" == "12.5% 46.4%"
    tokens = 4000
    load = ExpertLoad(LAYERS, 8, 2, tokens, CPU)
    random_ = torch.Generator().manual_seed(5)
    batch = build_batch([], [Chunk([0] * tokens, 0, range(tokens), True)], 1, CPU)
    for layer in range(LAYERS):
        load.record(layer, torch.rand(tokens, 8, generator=random_).argsort(1)[:, :2])
    load.finish_step(batch.slots_T, batch.previous_slots_T)
    told = load.repeats()
    assert told.pairs == tokens - 1
    for counts, rate in ((told.first, first), (told.any, both)):
        # Pairs overlap in a token, yet are pairwise independent: the binomial's deviation.
        deviation = math.sqrt(rate * (1 - rate) / told.pairs)
        for count in counts:
            assert abs(count / told.pairs - rate) < 4 * deviation

"""Among one layer's placements that are about equally even, one that loads few copies.

Each copy is an expert's weights to be read and sent. To give one up costs nothing, nor does to
keep one that there is room for. Masks as in rank_loads.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from actors.placement.layer_search import LayerSearch, toggled
from actors.placement.rank_loads import Masks

NEAR = 0.01  # placements whose busiest ranks differ by less are equally even


def nearest(search: LayerSearch, present: Masks, near: float = NEAR) -> Masks:
    """A valid placement within `near` of the best found, with few copies added to `present`.

    `present` itself where that is valid and good enough. Asked again with its answer, and the
    same `near`, it answers the same.
    """
    valid = search.is_valid(present)
    near_at_hand = search.path(present if valid else search.repaired(present))
    best = search.peak(near_at_hand[-1])
    ends: list[Masks] = []
    for packed in search.starts():
        if best <= search.bound * (1 + near / 4):
            break
        ends.append(search.path(packed)[-1])
        best = min(best, search.peak(ends[-1]))
    while True:
        limit = best * (1 + near)
        candidates = near_at_hand + [_relabelled(search, end, present) for end in ends]
        good = [c for c, peak in zip(candidates, search.peaks(candidates)) if peak <= limit]
        if valid and good[0] == present:
            return present
        trimmed = [_with_few_added(search, c, present, limit) for c in good]
        chosen = min(trimmed, key=lambda c: (num_added(c, present), search.peak(c)))
        beyond = search.path(chosen)[-1]
        if search.peak(chosen) <= search.peak(beyond) * (1 + near):
            return chosen
        ends.append(beyond)
        best = search.peak(beyond)


def num_added(masks: Masks, present: Masks) -> int:
    """Copies that are not in the present placement."""
    return sum((mask & ~old).bit_count() for mask, old in zip(masks, present))


def _relabelled(search: LayerSearch, masks: Masks, present: Masks) -> Masks:
    """The same parts given to other ranks, so that most of what they hold stays: pairs trade."""
    parts = [{e for e, mask in enumerate(masks) if mask & bit} for bit in search.bits]
    held = [{e for e, mask in enumerate(present) if mask & bit} for bit in search.bits]
    better = True
    while better:
        better = False
        for i, j in combinations(range(len(parts)), 2):
            kept = len(parts[i] & held[i]) + len(parts[j] & held[j])
            if len(parts[j] & held[i]) + len(parts[i] & held[j]) > kept:
                parts[i], parts[j] = parts[j], parts[i]
                better = True
    return tuple(
        sum(bit for bit, part in zip(search.bits, parts) if expert in part)
        for expert in range(len(masks))
    )


def _with_few_added(search: LayerSearch, masks: Masks, present: Masks, limit: float) -> Masks:
    """Undo additions one after the other while the busiest rank stays within `limit`."""
    masks = _with_kept(search, masks, present)
    while True:
        now = num_added(masks, present)
        undone = {_with_kept(search, undo, present): None for undo in _undo(search, masks, present)}
        fewer = [undo for undo in undone if num_added(undo, present) < now]
        if not fewer:
            return masks
        fine = [undo for undo, peak in zip(fewer, search.peaks(fewer)) if peak <= limit]
        if not fine:
            return masks
        masks = min(fine, key=lambda undo: num_added(undo, present))


def _with_kept(search: LayerSearch, masks: Masks, present: Masks) -> Masks:
    """With the present copies that there is room for: they cost nothing and even out."""
    for expert, old in enumerate(present):
        while lost := old & ~masks[expert] & search.has_room(masks):
            masks = toggled(masks, (expert, lost & -lost))
    return masks


def _undo(search: LayerSearch, masks: Masks, present: Masks) -> Iterator[Masks]:
    """The ways to take one added copy away; its expert may go back to where it was."""
    for expert, (mask, old) in enumerate(zip(masks, present)):
        for bit in search.bits:
            if not mask & ~old & bit:
                continue
            if mask != bit:
                yield toggled(masks, (expert, bit))
            for back in search.bits:
                if not old & ~mask & back:
                    continue
                for other, other_mask in enumerate(masks):
                    if not other_mask & back:
                        continue
                    if other_mask != back:
                        yield toggled(masks, (expert, bit | back), (other, back))
                    if not other_mask & bit:
                        yield toggled(masks, (expert, bit | back), (other, bit | back))

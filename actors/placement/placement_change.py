"""What a placement becomes when a change of it is asked for; each answer is a new version.

Where the change leaves a rank open, the recent load decides; without any, the copies held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.placement.balancer import propose
from actors.placement.placement_messages import ChangeRefused, Copy, Drop, Move, Replicate
from actors.placement.rank_loads import Load as Load
from actors.placement.rank_loads import rank_loads
from model.placement import ExpertPlacement

_NEAR = 0.05  # when ranks come or go, few copies matter more; the balancer can do the rest


def replicate(
    placement: ExpertPlacement, change: Replicate, ranks: Sequence[int], load_LE: Load
) -> ExpertPlacement:
    """One more holder: in its layer, or in every layer that it does not hold the expert in.

    Raises:
        ChangeRefused: no such expert, layer or rank; the rank, or every rank, holds it already.
    """
    holders = _holders(placement, change.expert, change.layer, ranks)
    what = _what(change.expert, change.layer)
    to = change.to
    if to is None:
        if all(len(held) == len(ranks) for held in holders.values()):
            raise ChangeRefused(f"every rank already holds {what}", "expert")
        to = _least_busy(placement, holders, ranks, load_LE)
    _check_rank(to, ranks, "to")
    layers = [layer for layer, held in holders.items() if to not in held]
    if not layers:
        raise ChangeRefused(f"rank {to} already holds {what}", "to")
    return _changed(placement, change.expert, {layer: (None, to) for layer in layers})


def move(
    placement: ExpertPlacement, change: Move, ranks: Sequence[int], load_LE: Load
) -> ExpertPlacement:
    """Another holder: in its layer, or in every layer that `source` holds the expert in.

    Without `source` the busiest holder of each layer gives it up. Layers stay in which `to`
    holds it already.

    Raises:
        ChangeRefused: no such expert, layer or rank; not a holder; nothing to move to.
    """
    holders = _holders(placement, change.expert, change.layer, ranks)
    what = _what(change.expert, change.layer)
    source, to = change.source, change.to
    if source is not None:
        _check_rank(source, ranks, "from")
        holders = {layer: held for layer, held in holders.items() if source in held}
        if not holders:
            raise ChangeRefused(f"rank {source} does not hold {what}", "from")
    if to is None:
        if all(len(held) == len(ranks) for held in holders.values()):
            raise ChangeRefused(f"every rank already holds {what}: nothing to move to", "to")
        to = _least_busy(placement, holders, ranks, load_LE)
    _check_rank(to, ranks, "to")
    holders = {layer: held for layer, held in holders.items() if to not in held}
    if not holders:
        raise ChangeRefused(f"rank {to} already holds {what}", "to")
    busy = _busy(placement, list(holders), ranks, load_LE)
    return _changed(
        placement,
        change.expert,
        {
            layer: (max(held, key=busy.__getitem__) if source is None else source, to)
            for layer, held in holders.items()
        },
    )


def drop(
    placement: ExpertPlacement, change: Drop, ranks: Sequence[int], load_LE: Load
) -> ExpertPlacement:
    """One holder less: in its layer, or in every layer that the rank holds the expert in.

    Raises:
        ChangeRefused: no such expert, layer or rank; not a holder; the only holder somewhere.
    """
    holders = _holders(placement, change.expert, change.layer, ranks)
    what = _what(change.expert, change.layer)
    only = {held[0]: layer for layer, held in reversed(holders.items()) if len(held) == 1}
    rank = change.rank
    if rank is None:
        busy = _busy(placement, list(holders), ranks, load_LE)
        free = {rank for held in holders.values() for rank in held} - set(only)
        if not free:
            raise ChangeRefused(f"no holder of {what} can be spared", "expert")
        rank = max(sorted(free), key=busy.__getitem__)
    _check_rank(rank, ranks, "rank")
    layers = [layer for layer, held in holders.items() if rank in held]
    if not layers:
        raise ChangeRefused(f"rank {rank} does not hold {what}", "rank")
    if rank in only:
        last = _what(change.expert, only[rank])
        raise ChangeRefused(f"rank {rank} is the only holder of {last}", "rank")
    return _changed(placement, change.expert, {layer: (rank, None) for layer in layers})


def spread(
    placement: ExpertPlacement, ranks: Sequence[int], load_LE: Load, slots: int
) -> ExpertPlacement:
    """The placement for other expert ranks: as even as the load and `slots` a layer allow.

    Layers without load are spread as if all experts had the same.

    Raises:
        ChangeRefused: the experts do not fit on these ranks.
    """
    num_experts = len(placement.ranks[0])
    if len(ranks) * slots < num_experts:
        raise ChangeRefused(
            f"{num_experts} experts do not fit on {len(ranks)} ranks with {slots} slots each",
            "expert_actors",
        )
    even = [1.0] * num_experts
    filled = [_load_of(placement, load_LE, layer) for layer in range(len(placement.ranks))]
    load_LE = [load_E if any(load_E) else even for load_E in filled]
    new = propose(load_LE, placement, ranks, slots, _NEAR)
    return ExpertPlacement(placement.version + 1, new.ranks)


def difference(
    old: ExpertPlacement, new: ExpertPlacement
) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
    """The copies only the new one has, and those only the old one has, in reading order."""
    before, after = _copies(old), _copies(new)
    return tuple(sorted(after - before)), tuple(sorted(before - after))


def _copies(placement: ExpertPlacement) -> set[Copy]:
    return {
        (layer, expert, rank)
        for layer, experts in enumerate(placement.ranks)
        for expert, held in enumerate(experts)
        for rank in held
    }


def _holders(
    placement: ExpertPlacement, expert: int, layer: int | None, ranks: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Per layer concerned the expert's holders in service, of which there must be one."""
    num_layers, num_experts = len(placement.ranks), len(placement.ranks[0])
    if not 0 <= expert < num_experts:
        raise ChangeRefused(f"no expert {expert}: they are 0 to {num_experts - 1}", "expert")
    if layer is not None and not 0 <= layer < num_layers:
        raise ChangeRefused(f"no layer {layer}: they are 0 to {num_layers - 1}", "layer")
    serving = placement.within(ranks)
    holders = {
        each: serving[each][expert] for each in (range(num_layers) if layer is None else [layer])
    }
    if not all(holders.values()):
        raise ChangeRefused(f"{_what(expert, layer)} has no holder in service: try again later")
    return holders


def _check_rank(rank: int, ranks: Sequence[int], param: str) -> None:
    if rank not in ranks:
        known = ", ".join(map(str, sorted(ranks)))
        raise ChangeRefused(f"rank {rank} is no expert rank in service: those are {known}", param)


def _what(expert: int, layer: int | None) -> str:
    return f"expert {expert}" + ("" if layer is None else f" of layer {layer}")


def _load_of(placement: ExpertPlacement, load_LE: Load, layer: int) -> Sequence[float]:
    return load_LE[layer] if load_LE else [0.0] * len(placement.ranks[layer])


def _busy(
    placement: ExpertPlacement, layers: Sequence[int], ranks: Sequence[int], load_LE: Load
) -> dict[int, tuple[float, int]]:
    """Per rank its rows in these layers, and the copies it holds there."""
    rows, copies = dict.fromkeys(ranks, 0.0), dict.fromkeys(ranks, 0)
    for layer in layers:
        held = placement.ranks[layer]
        load = rank_loads(_load_of(placement, load_LE, layer), held, ranks)
        for rank in ranks:
            rows[rank] += load[rank]
            copies[rank] += sum(rank in holders for holders in held)
    return {rank: (round(rows[rank], 6), copies[rank]) for rank in ranks}  # ties stay ties


def _least_busy(
    placement: ExpertPlacement,
    holders: Mapping[int, Sequence[int]],
    ranks: Sequence[int],
    load_LE: Load,
) -> int:
    """Of the ranks that lack the expert in most of these layers, the one with least to do."""
    busy = _busy(placement, list(holders), ranks, load_LE)
    held = {rank: sum(rank in some for some in holders.values()) for rank in ranks}
    return min(sorted(ranks), key=lambda rank: (held[rank], busy[rank]))


def _changed(
    placement: ExpertPlacement,
    expert: int,
    changes: Mapping[int, tuple[int | None, int | None]],
) -> ExpertPlacement:
    """Per layer: the rank that gives the expert up, and the one that gets it."""
    table = [list(experts) for experts in placement.ranks]
    for layer, (source, to) in changes.items():
        held = {*table[layer][expert], to} - {source, None}
        table[layer][expert] = tuple(sorted(rank for rank in held if rank is not None))
    return ExpertPlacement(placement.version + 1, tuple(map(tuple, table)))

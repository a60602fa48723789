"""Where the experts should be, given their load: the balancer's decisions, layer by layer.

After EPLB (github.com/deepseek-ai/EPLB): replicate what is hot, pack the heaviest first. Then
local search, from there and from the present placement, because a copy that need not be loaded
is worth more than the last percent. Layers are independent: each is a barrier of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.placement.layer_search import LayerSearch
from actors.placement.nearest_layer import NEAR, nearest, num_added
from actors.placement.rank_loads import Load, as_holders, as_masks
from model.placement import ExpertPlacement

_ROUNDING = 1e-6  # relative


@dataclass(frozen=True, slots=True)
class Decision:
    """What the balancer would have done; `placement` is None where all should stay as it is.

    `gain`: the share of the busiest ranks' rows, summed over the layers, that is saved.
    """

    placement: ExpertPlacement | None
    gain: float
    reason: str  # one sentence, with figures


def propose(
    load_LE: Load, placement: ExpertPlacement, ranks: Sequence[int], slots: int, near: float = NEAR
) -> ExpertPlacement:
    """An even placement on `ranks`, in every layer at most `slots` experts on each.

    Of those within `near` of the best found it takes one with few copies that are not there yet;
    `placement` itself where that will do. Layers without load stay if they can.

    Raises:
        ValueError: fewer slots than experts.
    """
    layers = []
    for load_E, holders_E in zip(load_LE, placement.ranks, strict=True):
        if len(ranks) * slots < len(holders_E):
            raise ValueError(f"{len(holders_E)} experts do not fit in {slots} slots a rank")
        search, present = LayerSearch(load_E, len(ranks), slots), as_masks(holders_E, ranks)
        masks = nearest(search, present, near)
        stays = masks == present and all(rank in ranks for held in holders_E for rank in held)
        layers.append(holders_E if stays else as_holders(masks, ranks))
    if tuple(layers) == placement.ranks:
        return placement
    return ExpertPlacement(placement.version + 1, tuple(layers))


def decide(
    load_LE: Load, placement: ExpertPlacement, ranks: Sequence[int], slots: int, min_gain: float
) -> Decision:
    """Whether a better placement is worth it; only layers that become more even change.

    The gain weighs a layer by its busiest rank, which is what the others wait for.
    """
    if not any(map(any, load_LE)):
        return Decision(None, 0.0, "no expert was chosen lately")
    if not all(map(all, placement.within(ranks))):
        return Decision(None, 0.0, "an expert has no holder among the ranks that serve")
    present = [as_masks(holders_E, ranks) for holders_E in placement.ranks]
    searches = [LayerSearch(load_E, len(ranks), slots) for load_E in load_LE]
    peaks = [search.peak(masks) for search, masks in zip(searches, present, strict=True)]
    now, mean = sum(peaks), sum(map(sum, load_LE)) / len(ranks)
    lowest = sum(min(search.bound, peak) for search, peak in zip(searches, peaks))
    said = f"max/mean {now / mean:.2f}"
    if 1 - lowest / now < min_gain:
        gain = 1 - lowest / now
        said += f", with {slots} experts a rank {lowest / mean:.2f} at best"
        return Decision(None, gain, f"{said}: gain {gain:.1%} is below {min_gain:.0%}")
    layers, after, copies = list(placement.ranks), now, 0
    for layer, (search, masks, peak) in enumerate(zip(searches, present, peaks)):
        new = nearest(search, masks)
        if search.peak(new) < peak * (1 - _ROUNDING):
            layers[layer] = as_holders(new, ranks)
            after += search.peak(new) - peak
            copies += num_added(new, masks)
    gain = 1 - after / now
    said += f" now, {after / mean:.2f} with {copies} copies loaded"
    if gain < min_gain or not copies:
        return Decision(None, gain, f"{said}: gain {gain:.1%} is below {min_gain:.0%}")
    better = ExpertPlacement(placement.version + 1, tuple(layers))
    return Decision(better, gain, f"{said}: gain {gain:.1%}")

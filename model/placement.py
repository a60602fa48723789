"""Which ranks hold which expert of which layer: a versioned value, never changed in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

Pair = tuple[int, int]  # (layer, expert)


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """`ranks[layer][expert]` are the ranks that hold it; every expert has at least one."""

    version: int
    ranks: tuple[tuple[tuple[int, ...], ...], ...]

    def held_by(self, rank: int) -> list[tuple[int, int]]:
        """The (layer, expert) pairs a rank holds, in reading order."""
        return [
            (layer, expert)
            for layer, experts in enumerate(self.ranks)
            for expert, holders in enumerate(experts)
            if rank in holders
        ]

    def within(self, ranks: Collection[int]) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """`ranks[layer][expert]` of those holders that are among `ranks`; some may be empty."""
        return tuple(
            tuple(tuple(rank for rank in holders if rank in ranks) for holders in experts)
            for experts in self.ranks
        )


def split_evenly(num_layers: int, num_experts: int, ranks: Sequence[int]) -> ExpertPlacement:
    """Give each rank a run of experts, the same in all layers; the first ranks take the rest.

    8 experts on 3 ranks: 0-2, 3-5, 6-7.

    Raises:
        ValueError: more ranks than experts, or no rank.
    """
    if not 1 <= len(ranks) <= num_experts:
        raise ValueError(f"{num_experts} experts cannot be split over {len(ranks)} expert actors")
    share, rest = divmod(num_experts, len(ranks))
    holders: list[tuple[int, ...]] = []
    for index, rank in enumerate(ranks):
        holders += [(rank,)] * (share + (index < rest))
    return ExpertPlacement(version=1, ranks=(tuple(holders),) * num_layers)

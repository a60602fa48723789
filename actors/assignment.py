"""Which attention actor gets which request: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence


def assign(num_requests: int, unfinished: Sequence[int]) -> list[int]:
    """Give each request the actor with the fewest unfinished ones, counting as it goes.

    `unfinished` is what each actor has now; ties go to the lower index. Returns actor indices.
    """
    loads = list(unfinished)
    chosen = []
    for _ in range(num_requests):
        index = min(range(len(loads)), key=loads.__getitem__)
        loads[index] += 1
        chosen.append(index)
    return chosen

"""A wind rose in text: from each direction blows as much as an expert has of the load."""

from __future__ import annotations

import math
from collections.abc import Sequence

_ROWS = 6  # from the middle to the end of the longest
_ASPECT = 2.1  # a character is so many times as high as it is wide


def wind_rose(loads: Sequence[float], *, ascii_only: bool = False) -> list[str]:
    """Lines of a picture: expert 0 in the north, the others clockwise, each with its number.

    The longest direction has the largest load; one without load has its number alone.
    """
    columns = round(_ROWS * _ASPECT)
    width, height = 2 * columns + 7, 2 * _ROWS + 3
    grid = [[" "] * width for _ in range(height)]
    middle_x, middle_y = width // 2, height // 2
    most = max(loads, default=0.0)
    mark, middle = ("*", "+") if ascii_only else ("●", "┼")
    for expert, load in enumerate(loads):
        angle = 2 * math.pi * expert / len(loads)
        right, up = math.sin(angle), math.cos(angle)
        length = load / most * _ROWS if most > 0 else 0.0
        # Twice as many dots sideways, where characters are narrow.
        for step in range(1, round(2 * length) + 1):
            x = middle_x + round(step / 2 * right * _ASPECT)
            y = middle_y - round(step / 2 * up)
            grid[y][x] = mark
        end = max(1.0, round(2 * length) / 2 + 1)
        x, y = middle_x + round(end * right * _ASPECT), middle_y - round(end * up)
        for offset, digit in enumerate(str(expert)):
            grid[y][x + offset] = digit
    grid[middle_y][middle_x] = middle
    return ["".join(row).rstrip() for row in grid]

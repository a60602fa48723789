"""Rotary position embedding (Su et al., arXiv 2104.09864), in Hugging Face's half-split order.

Shape suffixes: T rows, H heads, d head dimension.
"""

from __future__ import annotations

import torch


class Rope:
    """Cosines and sines for every position up to `max_positions`, computed once in fp32."""

    __slots__ = ("_cos_Pd", "_sin_Pd")

    def __init__(
        self,
        head_dim: int,
        theta: float,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        inverse_frequency = 1.0 / (theta**exponent)
        angles = torch.outer(torch.arange(max_positions).float(), inverse_frequency)
        cos, sin = angles.cos(), angles.sin()
        # The sign of rotate_half is folded into the sine table: one multiply instead of a negate.
        self._cos_Pd = torch.cat((cos, cos), -1).to(device=device, dtype=dtype)
        self._sin_Pd = torch.cat((-sin, sin), -1).to(device=device, dtype=dtype)

    def tables(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cos, signed sin) of the rows' positions, [T, 1, d] each: once per step."""
        return (
            self._cos_Pd.index_select(0, positions_T).unsqueeze(1),
            self._sin_Pd.index_select(0, positions_T).unsqueeze(1),
        )


def rotate(x_THd: torch.Tensor, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor) -> torch.Tensor:
    """Turn every head of every row by its position, in place; returns `x_THd`."""
    swapped_THd = x_THd.roll(x_THd.shape[-1] // 2, dims=-1)
    return x_THd.mul_(cos_T1d).add_(swapped_THd.mul_(sin_T1d))

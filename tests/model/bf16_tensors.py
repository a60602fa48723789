"""Random tensors in bf16, and how near to exact ones such results must come."""

from __future__ import annotations

import torch

BF16 = torch.bfloat16


def random_bf16(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(BF16)


def assert_close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding to bf16 of sums that may cancel."""
    torch.testing.assert_close(ours.float(), exact, rtol=2**-8, atol=2**-9)

"""Root-mean-square layer norm (Zhang and Sennrich, arXiv 1910.07467), as Mixtral uses it."""

from __future__ import annotations

import torch

from model.cpu_kernels.in_use import kernels_for


class RMSNorm:
    """`x / rms(x) * weight`: the mean is taken in fp32, the product in the model's dtype."""

    __slots__ = ("_eps", "_kernels", "weight_D")

    def __init__(self, weight_D: torch.Tensor, eps: float) -> None:
        self.weight_D = weight_D.contiguous()
        self._eps = eps
        self._kernels = kernels_for(weight_D)

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Return the normalised rows, [T, D], in the dtype of x."""
        if self._kernels is not None:
            return self._kernels.rms_norm(x_TD, self.weight_D, self._eps)
        x32_TD = x_TD.float()
        scale_T1 = torch.rsqrt(x32_TD.square().mean(-1, keepdim=True).add_(self._eps))
        return (x32_TD * scale_T1).to(x_TD.dtype).mul_(self.weight_D)

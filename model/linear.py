"""One weight matrix in the form its device multiplies fastest.

Shape suffixes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.cpu_kernels.decode_layer import PackedMatrix
from model.cpu_kernels.in_use import kernels_for
from model.cpu_kernels.quantized_packing import pack_quantized
from model.quantization import QuantizedMatrix, quantize
from model.quantized_products import QuantizedProduct, product_with


class Linear:
    """`y_TO = x_TI @ weight_OI.T`, without bias.

    On CPU the weight is repacked once, for the project's own kernels or for oneDNN: plain bf16
    weights are reordered on every call, which halves the bandwidth a decode step reaches. The
    packed copy replaces the plain one, so no weight is held twice. With 8 or 4 `bits` it is
    quantized, if it is not yet; where the project's kernels cannot run, torch multiplies by it.
    """

    __slots__ = (
        "_bits",
        "_kernels",
        "_onednn",
        "_quantized",
        "_weight",
        "in_features",
        "num_bytes",
        "out_features",
    )

    def __init__(self, weight_OI: torch.Tensor | QuantizedMatrix, bits: int = 16) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self._kernels = kernels_for(weight_OI)
        self._quantized: QuantizedProduct | None = None
        if isinstance(weight_OI, torch.Tensor) and bits < 16:
            weight_OI = quantize(weight_OI, bits)
        if isinstance(weight_OI, QuantizedMatrix):
            self._bits, self._onednn = weight_OI.bits, False
            self.num_bytes = weight_OI.num_bytes
            if self._kernels is not None:
                self._weight = pack_quantized(weight_OI)
            else:
                self._quantized = product_with(weight_OI)
            return
        self._bits = bits
        self.num_bytes = weight_OI.numel() * weight_OI.element_size()
        self._onednn = self._kernels is None and _onednn_packs(weight_OI)
        if self._kernels is not None:
            self._weight = self._kernels.pack(weight_OI)
        elif self._onednn:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 1)
        else:
            self._weight = weight_OI

    @property
    def is_packed(self) -> bool:
        """Whether it holds a copy of its own, not the tensor it was made from."""
        return self._kernels is not None or self._onednn or self._quantized is not None

    @property
    def packed(self) -> PackedMatrix | None:
        """What the project's kernels read; None where they cannot."""
        if self._kernels is None:
            return None
        return PackedMatrix(self._weight.data_ptr(), self._bits)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        if self._kernels is not None:
            return self._kernels.linear(x_TI, self._weight, self.out_features, self._bits)
        if self._quantized is not None:
            return self._quantized(x_TI)
        if self._onednn:
            y_TO: torch.Tensor = _linear_pointwise(x_TI, self._weight, None, "none", [], "")
            return y_TO
        return F.linear(x_TI, self._weight)


_linear_pointwise = torch.ops.mkldnn._linear_pointwise


def _onednn_packs(weight_OI: torch.Tensor) -> bool:
    """Whether oneDNN can hold this weight packed on this machine."""
    if weight_OI.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight_OI.dtype == torch.float32:
        return True
    return weight_OI.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

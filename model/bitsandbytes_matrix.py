"""Matrices that bitsandbytes has quantized, held in their own bytes and multiplied by the library.

Shape suffixes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from model.bitsandbytes_layout import parts_of, state_part
from model.bitsandbytes_library import load_library
from model.checkpoint import Checkpoint
from model.quantization import QuantizedMatrix
from model.shards import CheckpointError

_PACKED_OUTPUTS = 32  # the library's kernel for bf16 on CPUs takes outputs in such groups
_LARGEST_BLOCK = 1024  # of weights that share a scale; with more the library compiles at run time
_ROW_MAJOR = 0  # of the layouts that X.weight_format can name


@dataclass(frozen=True, slots=True)
class FourBitMatrix:
    """nf4 or fp4: two weights to a byte, a scale for each block of them."""

    shape: tuple[int, int]  # [O, I]
    dtype: torch.dtype  # of the rows that it multiplies
    packed: torch.Tensor
    state: Any  # the library's QuantState

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.packed.device

    def dequantize(self) -> torch.Tensor:
        """The matrix it stands for, [O, I]."""
        # As one row: the library's kernel for CPUs takes a block of weights to end with its row.
        flat = copy.copy(self.state)
        flat.shape = (1, self.shape[0] * self.shape[1])
        dense: torch.Tensor = load_library().functional.dequantize_4bit(self.packed, flat)
        return dense.view(self.shape)

    @property
    def whole_blocks(self) -> bool:
        """Whether no block of weights goes on in the next row."""
        return bool(self.shape[1] % self.state.blocksize == 0)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self.packed.nbytes + _state_bytes(self.state)

    def project(self) -> FourBitLinear | RestoringLinear:
        """What multiplies by it."""
        return FourBitLinear(self) if self.whole_blocks else RestoringLinear(self)


@dataclass(frozen=True, slots=True)
class EightBitMatrix:
    """LLM.int8 (Dettmers et al., arXiv 2208.07339): `numbers_OI * scales_O / 127`."""

    numbers_OI: torch.Tensor
    scales_O: torch.Tensor
    dtype: torch.dtype  # of the rows that it multiplies
    threshold: float

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        outputs, inputs = self.numbers_OI.shape
        return outputs, inputs

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.numbers_OI.device

    def dequantize(self) -> torch.Tensor:
        """The matrix it stands for, [O, I]."""
        library = load_library().functional
        dense_OI: torch.Tensor = library.int8_vectorwise_dequant(self.numbers_OI, self.scales_O)
        return dense_OI.to(self.dtype)

    def as_rounded(self) -> QuantizedMatrix:
        """The same as what the project's own kernels take.

        Where they run they are several times faster than the library's, and round no rows.
        """
        return QuantizedMatrix(
            8, self.numbers_OI, self.scales_O.float().unsqueeze(1) / 127, self.dtype
        )

    def project(self) -> EightBitLinear:
        """What multiplies by it."""
        return EightBitLinear(self)


class RestoringLinear:
    """`y_TO = x_TI @ weight_OI.T`: the matrix is turned back for every product."""

    __slots__ = ("_matrix", "num_bytes")

    def __init__(self, matrix: FourBitMatrix) -> None:
        self._matrix = matrix
        self.num_bytes = matrix.num_bytes

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        return F.linear(x_TI, self._matrix.dequantize())


class FourBitLinear:
    """`y_TO = x_TI @ weight_OI.T` by the library.

    In bf16 on CPUs with AVX512-BF16 that is its kernel over weights packed for it, whose scales are
    rounded to bf16; elsewhere on CPUs it turns the matrix back for every product.
    """

    __slots__ = ("_matmul", "_packed", "_state", "num_bytes")

    def __init__(self, matrix: FourBitMatrix) -> None:
        library = load_library()
        self._matmul: Callable[..., torch.Tensor] = library.matmul_4bit
        self._packed, self._state = matrix.packed, matrix.state
        if _kernel_takes(matrix):
            self._packed, self._state = library.functional._convert_weight_packed_for_cpu(
                matrix.packed, copy.copy(matrix.state)
            )
        self.num_bytes = self._packed.nbytes + _state_bytes(self._state)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        return self._matmul(x_TI, self._packed, self._state)


class EightBitLinear:
    """`y_TO = x_TI @ weight_OI.T` by the library.

    With rows of 16 bits it is LLM.int8: rows are rounded to 8 bits too, but for inputs above the
    threshold. With fp32 rows nothing else is rounded: the matrix is turned back for every product.
    """

    __slots__ = ("_dequantize", "_matmul", "_numbers_OI", "_scales_O", "_state", "num_bytes")

    def __init__(self, matrix: EightBitMatrix) -> None:
        library = load_library()
        self._matmul: Callable[..., torch.Tensor] = library.matmul
        self._dequantize = library.functional.int8_vectorwise_dequant
        self._numbers_OI, self._scales_O = matrix.numbers_OI, matrix.scales_O
        self._state = library.MatmulLtState()
        self._state.CB, self._state.SCB = matrix.numbers_OI, matrix.scales_O
        self._state.threshold = matrix.threshold
        self._state.has_fp16_weights = self._state.is_training = False
        self.num_bytes = matrix.numbers_OI.nbytes + matrix.scales_O.nbytes

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        if x_TI.dtype == torch.float32:
            return F.linear(x_TI, self._dequantize(self._numbers_OI, self._scales_O))
        return self._matmul(x_TI, self._numbers_OI, state=self._state)


def _kernel_takes(matrix: FourBitMatrix) -> bool:
    return (
        matrix.device.type == "cpu"
        and matrix.dtype == torch.bfloat16
        and matrix.shape[0] % _PACKED_OUTPUTS == 0
        and bool(load_library().functional.has_avx512bf16())
    )


def _state_bytes(state: Any) -> int:
    return int(state.absmax.nbytes) + (int(state.state2.absmax.nbytes) if state.nested else 0)


def read_matrix(
    checkpoint: Checkpoint,
    key: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    threshold: float,
    read: Callable[[str], torch.Tensor],
) -> FourBitMatrix | EightBitMatrix:
    """Take together what stands for one quantized weight of `shape` [O, I].

    `read` gives a tensor of the checkpoint as it is stored.

    Raises:
        CheckpointError: a part is missing or contradicts the shape; names file and key.
    """
    parts = parts_of(key, checkpoint.entries)
    file = checkpoint.entries[key].file
    if checkpoint.entries[key].dtype == "I8":
        if "weight_format" in parts and int(read(parts["weight_format"]).item()) != _ROW_MAJOR:
            raise CheckpointError(
                f"{file}: {parts['weight_format']}: only 0 (row-major) is supported"
            )
        return EightBitMatrix(read(key).to(device), read(parts["SCB"]).to(device), dtype, threshold)
    state = state_part(parts)
    if state is None:
        raise CheckpointError(f"{file}: {key} has no quant_state")
    tensors = {part: read(name) for part, name in parts.items()}
    described = _described(f"{file}: {key}.{state}", tensors[state], shape)
    blocks = -(-shape[0] * shape[1] // described)
    if tensors["absmax"].numel() != blocks:
        raise CheckpointError(
            f"{file}: {key}.absmax: expected shape [{blocks}], "
            f"found {list(tensors['absmax'].shape)}"
        )
    quant_state = load_library().functional.QuantState.from_dict(tensors, device)
    quant_state.dtype = dtype
    return FourBitMatrix(shape, dtype, read(key).to(device), quant_state)


def _described(where: str, text: torch.Tensor, shape: tuple[int, int]) -> int:
    """Check a matrix's JSON text against what is expected; returns the weights of a block."""
    try:
        state = json.loads(bytes(text.tolist()))
        stored, block = tuple(state["shape"]), state["blocksize"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: not the JSON that bitsandbytes writes: {error}") from error
    if stored != shape:
        raise CheckpointError(f"{where}: shape is {list(stored)}; {list(shape)} is needed")
    if type(block) is not int or not 0 < block <= _LARGEST_BLOCK:
        raise CheckpointError(
            f"{where}: blocksize is {block!r}; 1 to {_LARGEST_BLOCK} are supported"
        )
    return block

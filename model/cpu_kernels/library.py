"""The project's own bf16 kernels for CPUs, AMX, AVX512-BF16 or AVX2, built when it is installed.

Every one has an equivalent in torch that other types, devices and machines use; these are
faster, and sum in fp32 where torch rounds in between. Products and experts give a row the same
result whatever rows are beside it; nothing depends on the number of threads.
Shape suffixes: T rows, I inputs, O outputs, D hidden, F expert hidden, E experts, K experts per
token, J heads of queries, keys and values, B decoding rows, N blocks, d head dimension.
"""

from __future__ import annotations

import ctypes

import torch

from model.cpu_kernels.mixture import LowRankAddresses, mix
from model.host_memory import empty_for_weights

_PANEL = 32  # outputs side by side in a packed matrix
_HALF_PANEL = 16

_POINTER, _INT64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "windrose_pack": [_POINTER] * 2 + [_INT64] * 2,
    "windrose_pack_pair": [_POINTER] * 3 + [_INT64] * 2,
    "windrose_linear": [_POINTER, _INT64, _POINTER, _INT, _POINTER] + [_INT64] * 3 + [_INT],
    "windrose_experts": [_POINTER, _INT64, _POINTER, _POINTER, _INT64, _INT64, _POINTER, _POINTER]
    + [_INT]
    + [_INT64] * 3
    + [_POINTER, _INT],
    "windrose_low_rank_experts": [_POINTER, _INT64]
    + [_POINTER] * 2
    + [_INT64] * 2
    + [_POINTER, _INT]
    + [_INT64] * 3
    + [_POINTER, _INT],
    "windrose_rms_norm": [_POINTER] * 3 + [_INT64] * 2 + [_FLOAT],
    "windrose_top_k": [_POINTER] * 3 + [_INT64] * 3,
    "windrose_best": [_POINTER] * 2 + [_INT64] * 2 + [_INT],
    "windrose_rotate_and_store": [_POINTER] * 5 + [_INT64] * 4,
    "windrose_decode_attention": [_POINTER, _INT64, _POINTER, _POINTER, _INT64, _POINTER]
    + [_INT64] * 6
    + [_FLOAT, _POINTER, _INT],
    "windrose_decode_layer": [_POINTER] * 9 + [_INT],
    "windrose_prefill_attention": [_POINTER, _INT64, _POINTER, _POINTER]
    + [_INT64] * 7
    + [_FLOAT, _POINTER, _INT],
}


class CpuKernels:
    """Typed calls into the compiled library. Tensors are bf16 on the CPU where not said else.

    `num_threads` share each call's work: the caller's own, and helpers where it is large enough.
    """

    def __init__(self, library: ctypes.CDLL, num_threads: int = 1) -> None:
        self.num_threads = num_threads
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        for name in ("windrose_experts", "windrose_low_rank_experts"):
            getattr(library, name).restype = _INT64
        self._pack = library.windrose_pack
        self._pack_pair = library.windrose_pack_pair
        self._linear = library.windrose_linear
        self._experts = library.windrose_experts
        self._low_rank_experts = library.windrose_low_rank_experts
        self._rms_norm = library.windrose_rms_norm
        self._top_k = library.windrose_top_k
        self._best = library.windrose_best
        self._rotate_and_store = library.windrose_rotate_and_store
        self._decode_attention = library.windrose_decode_attention
        self._prefill_attention = library.windrose_prefill_attention
        # All of it by address: model/cpu_kernels/decode_layer.py has what it takes.
        self.decode_layer = library.windrose_decode_layer

    def pack(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return the matrix in the form `linear` reads, outputs padded to whole panels; I even."""
        weight_OI = weight_OI.contiguous()
        outputs, inputs = weight_OI.shape
        size = _panels(outputs, _PANEL) * _PANEL * inputs
        packed = empty_for_weights((size,), torch.bfloat16)
        self._pack(weight_OI.data_ptr(), packed.data_ptr(), outputs, inputs)
        return packed

    def pack_pair(self, w1_FD: torch.Tensor, w3_FD: torch.Tensor) -> torch.Tensor:
        """Return both matrices as one, in turns of 16 outputs: what `experts` reads as w13."""
        w1_FD, w3_FD = w1_FD.contiguous(), w3_FD.contiguous()
        outputs, inputs = w1_FD.shape
        size = _panels(outputs, _HALF_PANEL) * _PANEL * inputs
        packed = empty_for_weights((size,), torch.bfloat16)
        self._pack_pair(w1_FD.data_ptr(), w3_FD.data_ptr(), packed.data_ptr(), outputs, inputs)
        return packed

    def linear(
        self, x_TI: torch.Tensor, packed: torch.Tensor, outputs: int, bits: int = 16
    ) -> torch.Tensor:
        """Return y_TO; x may have any row stride. With 8 or 4 bits, of `pack_quantized`."""
        rows, inputs = x_TI.shape
        y_TO = torch.empty(rows, outputs, dtype=torch.bfloat16)
        self._linear(
            x_TI.data_ptr(),
            x_TI.stride(0),
            packed.data_ptr(),
            bits,
            y_TO.data_ptr(),
            rows,
            inputs,
            outputs,
            self.num_threads,
        )
        return y_TO

    def experts(
        self,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        w13_E: ctypes.Array[ctypes.c_void_p],
        w2_E: ctypes.Array[ctypes.c_void_p],
        inner: int,
        bits: int = 16,
    ) -> torch.Tensor:
        """Return y_TD, each row's weighted sum over its experts. Ids int64, below 0: nobody's.

        `w13_E` and `w2_E` point at the packed matrices, null where there are none: KeyError if
        an id names such an expert.
        """
        weights = (w13_E, w2_E)
        return mix(self._experts, self.num_threads, x_TD, ids_TK, weights_TK, weights, inner, bits)

    def low_rank_experts(
        self,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        factors_E: ctypes.Array[LowRankAddresses],
        inner: int,
        bits: int = 16,
    ) -> torch.Tensor:
        """The same of experts whose matrices are packed factors."""
        run, factors = self._low_rank_experts, (factors_E,)
        return mix(run, self.num_threads, x_TD, ids_TK, weights_TK, factors, inner, bits)

    def rms_norm(self, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """Return x / rms(x) * weight, [T, D]."""
        x_TD = x_TD.contiguous()
        y_TD = torch.empty_like(x_TD)
        rows, width = x_TD.shape
        self._rms_norm(x_TD.data_ptr(), weight_D.data_ptr(), y_TD.data_ptr(), rows, width, eps)
        return y_TD

    def top_k(self, logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ids_TK int64, weights_TK fp32), the softmax over each row's largest logits."""
        rows, experts = logits_TE.shape
        ids_TK = torch.empty(rows, top_k, dtype=torch.int64)
        weights_TK = torch.empty(rows, top_k, dtype=torch.float32)
        self._top_k(
            logits_TE.data_ptr(), ids_TK.data_ptr(), weights_TK.data_ptr(), rows, experts, top_k
        )
        return ids_TK, weights_TK

    def best(self, logits_TV: torch.Tensor) -> list[int]:
        """Each row's lowest id of its largest logit, -1 where that is NaN or infinite."""
        logits_TV = logits_TV.contiguous()
        rows, width = logits_TV.shape
        best = (_INT64 * rows)()
        self._best(logits_TV.data_ptr(), ctypes.addressof(best), rows, width, self.num_threads)
        return list(best)

    def rotate_and_store(
        self,
        heads_TJd: torch.Tensor,
        cos_T1d: torch.Tensor,
        sin_T1d: torch.Tensor,
        layer_cache: torch.Tensor,
        slots_T: torch.Tensor,
        num_heads: int,
    ) -> None:
        """Turn queries and keys in place, then store keys and values at their slots.

        `layer_cache` is [slots, 2 G, d]; d is a multiple of 32.
        """
        rows, _, head_dim = heads_TJd.shape
        self._rotate_and_store(
            heads_TJd.data_ptr(),
            cos_T1d.data_ptr(),
            sin_T1d.data_ptr(),
            layer_cache.data_ptr(),
            slots_T.data_ptr(),
            rows,
            num_heads,
            layer_cache.shape[1] // 2,
            head_dim,
        )

    def decode_attention(
        self,
        query_BJd: torch.Tensor,
        layer_cache: torch.Tensor,
        blocks_BN: torch.Tensor,
        lengths_B: torch.Tensor,
        block_size: int,
        window: int | None,
    ) -> torch.Tensor:
        """Return [B, heads * d]: each row over the cached positions of its own sequence.

        `layer_cache` is [slots, 2 G, d]; d is a multiple of 32.
        """
        rows, num_heads, head_dim = query_BJd.shape
        out = torch.empty(rows, num_heads * head_dim, dtype=torch.bfloat16)
        self._decode_attention(
            query_BJd.data_ptr(),
            query_BJd.stride(0),
            layer_cache.data_ptr(),
            blocks_BN.data_ptr(),
            blocks_BN.stride(0),
            lengths_B.data_ptr(),
            rows,
            num_heads,
            layer_cache.shape[1] // 2,
            head_dim,
            block_size,
            window or 0,
            head_dim**-0.5,
            out.data_ptr(),
            self.num_threads,
        )
        return out

    def prefill_attention(
        self,
        query_TJd: torch.Tensor,
        layer_cache: torch.Tensor,
        blocks_N: torch.Tensor,
        start: int,
        block_size: int,
        window: int | None,
    ) -> torch.Tensor:
        """Return [T, heads * d]: row r is position start + r of the sequence of these blocks.

        Its keys and values are in `layer_cache` [slots, 2 G, d] already; d is a multiple of 32.
        """
        rows, num_heads, head_dim = query_TJd.shape
        out = torch.empty(rows, num_heads * head_dim, dtype=torch.bfloat16)
        self._prefill_attention(
            query_TJd.data_ptr(),
            query_TJd.stride(0),
            layer_cache.data_ptr(),
            blocks_N.data_ptr(),
            start,
            rows,
            num_heads,
            layer_cache.shape[1] // 2,
            head_dim,
            block_size,
            window or 0,
            head_dim**-0.5,
            out.data_ptr(),
            self.num_threads,
        )
        return out


def _panels(outputs: int, size: int) -> int:
    return -(-outputs // size)

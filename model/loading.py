"""From a checkpoint to what one role holds. Each role reads its own tensors and no others.

A weight is converted and packed as soon as it is read, so the peak is what the role keeps plus
one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue

import torch

from model.attention import Attention
from model.bitsandbytes_matrix import EightBitMatrix, FourBitMatrix, read_matrix
from model.checkpoint import Checkpoint, OnRead
from model.config import ModelConfig
from model.cpu_kernels.in_use import kernels_for
from model.decoder_weights import DecoderLayer, DecoderWeights
from model.experts import AnyExpert, ExpertShard, PackedExpert, make_expert
from model.gate import Gate
from model.host_memory import Scratch
from model.linear import Linear
from model.norm import RMSNorm
from model.projection import Factors, Projection, StoredMatrix, project
from model.quantization import QuantizedMatrix, quantize
from model.quantized_cache import QuantizedCache
from model.ranks import factor_keys, matrix_name
from model.weights import (
    EMBED_KEY,
    HEAD_KEY,
    NORM_KEY,
    SCORE_KEY,
    attention_shapes,
    dense_keys,
    expected_shapes,
    expert_keys,
    layer_prefix,
)

_HEAD_BITS = 8  # of a quantized model: logits want more than 4, and it is read in every step


class _Reader:
    """Reads one tensor at a time onto a device, in a dtype."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        on_read: OnRead | None,
        bits: int = 16,
        cache: QuantizedCache | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._take = None if scratch is None else scratch.take
        self._bits = bits
        self._cache = cache
        self._ranks = config.ranks
        self._stored = stored = config.bitsandbytes
        self._shapes = {} if stored is None else expected_shapes(config)
        self._dtype = dtype
        self._device = device
        self._on_read = on_read

    def __call__(self, key: str) -> torch.Tensor:
        """One tensor; dense, whatever it is stored as."""
        if self._is_quantized(key):
            return self._quantized(key).dequantize()
        tensor = self._checkpoint.read(key, self._on_read, self._take)
        return tensor.to(device=self._device, dtype=self._dtype)

    def matrix(self, key: str, bits: int | None = None) -> StoredMatrix:
        """The weight of a projection: as the checkpoint stores it, or rounded to `bits`.

        None: to the bits of all; 16: not at all.
        """
        if self._is_quantized(key):
            stored = self._quantized(key)
            if isinstance(stored, EightBitMatrix) and kernels_for(stored) is not None:
                return stored.as_rounded()
            return stored
        bits = self._bits if bits is None else bits
        if matrix_name(key) in self._ranks:
            first, second = factor_keys(key)
            return Factors(self._one(first, bits), self._one(second, bits))
        return self._one(key, bits)

    def _one(self, key: str, bits: int) -> torch.Tensor | QuantizedMatrix:
        return self(key) if bits == 16 else self._rounded(key, bits)

    def _rounded(self, key: str, bits: int) -> QuantizedMatrix:
        if self._cache is not None:
            kept = self._cache.read(key, bits, self._dtype)
            if kept is not None:
                if self._on_read is not None:
                    self._on_read(self._checkpoint.total_bytes([key]))
                return kept.to(self._device)
        stored = self._checkpoint.read(key, self._on_read).to(self._device)
        matrix = replace(quantize(stored, bits), dtype=self._dtype)
        if self._cache is not None:
            self._cache.write(key, matrix)
        return matrix

    def _is_quantized(self, key: str) -> bool:
        return self._stored is not None and self._checkpoint.quantized(key)

    def _quantized(self, key: str) -> FourBitMatrix | EightBitMatrix:
        assert self._stored is not None
        outputs, inputs = self._shapes[key]
        return read_matrix(
            self._checkpoint,
            key,
            (outputs, inputs),
            self._dtype,
            self._device,
            self._stored.threshold,
            lambda name: self._checkpoint.read(name, self._on_read),
        )


def load_decoder(
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    on_read: OnRead | None = None,
    *,
    bits: int = 16,
    cache: QuantizedCache | None = None,
) -> DecoderWeights:
    """Read what an attention actor holds: embedding, attention, norms, gates and head, if any.

    Of a dense model, which has no gates, the feed-forward blocks instead: it is then all of it.
    Attention and these blocks are quantized to so many `bits`, and the head to 8; 16: not at all.
    What is in the `cache` is taken from there, and what is made is put there.

    Raises:
        CheckpointError: names the file and key at fault.
    """
    read = _Reader(checkpoint, config, dtype, device, on_read, bits, cache)
    embedding_VD = read(EMBED_KEY)
    layers, gates, dense_blocks = [], [], []
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        q, k, v, o = (read.matrix(f"{prefix}.self_attn.{name}_proj.weight") for name in "qkvo")
        layers.append(
            DecoderLayer(
                input_norm=RMSNorm(read(f"{prefix}.input_layernorm.weight"), config.rms_norm_eps),
                attention=Attention(config, q, k, v, o),
                ffn_norm=RMSNorm(
                    read(f"{prefix}.post_attention_layernorm.weight"), config.rms_norm_eps
                ),
            )
        )
        if config.is_dense:
            dense_blocks.append(make_expert(*map(read.matrix, dense_keys(layer))))
        else:
            gates.append(Gate(read(f"{prefix}.block_sparse_moe.gate.weight"), config.top_k))
    norm = RMSNorm(read(NORM_KEY), config.rms_norm_eps)
    head: Projection | None = None
    score_ND = None
    tied = config.tie_word_embeddings
    if config.head.task == "generate":
        head_bits = bits if bits == 16 else _HEAD_BITS
        head = project(embedding_VD if tied else read.matrix(HEAD_KEY, head_bits), head_bits)
    elif config.head.task == "classify":
        score_ND = read(SCORE_KEY).float()
    elsewhere = (".self_attn.", ".mlp.", HEAD_KEY, SCORE_KEY)  # what counts its own bytes
    plain = sum(
        math.prod(shape)
        for key, shape in attention_shapes(config).items()
        if not any(part in key for part in elsewhere)
    )
    shared = tied and isinstance(head, Linear) and not head.is_packed
    return DecoderWeights(
        embedding_VD=embedding_VD,
        layers=tuple(layers),
        gates=tuple(gates),
        dense_blocks=tuple(dense_blocks),
        norm=norm,
        head=head,
        num_bytes=plain * dtype.itemsize
        + sum(layer.attention.num_bytes for layer in layers)
        + sum(block.num_bytes for block in dense_blocks)
        + (0 if shared or head is None else head.num_bytes)
        + (0 if score_ND is None else score_ND.nbytes),
        score_ND=score_ND,
    )


def load_experts(
    checkpoint: Checkpoint,
    config: ModelConfig,
    held: Iterable[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    on_read: OnRead | None = None,
    *,
    workers: int = 1,
    bits: int = 16,
    cache: QuantizedCache | None = None,
) -> ExpertShard:
    """Read the (layer, expert) pairs that one rank holds, `workers` of them at once.

    They are quantized to so many `bits`, or taken from the `cache`; 16: not at all.

    Reading and packing both leave the interpreter to other threads. `on_read` is called by the
    thread that calls this, after each expert.

    Raises:
        CheckpointError: names the file and key at fault.
    """

    def load(pair: tuple[int, int]) -> tuple[tuple[int, int], AnyExpert, list[int]]:
        read_bytes: list[int] = []
        scratch = scratches.get_nowait()
        read = _Reader(checkpoint, config, dtype, device, read_bytes.append, bits, cache, scratch)
        try:
            expert = make_expert(*map(read.matrix, expert_keys(config, *pair)))
            if isinstance(expert, PackedExpert):
                scratch.take_back()
        finally:
            scratch.leave()  # an expert in another form may hold the matrices as they were read
            scratches.put(scratch)
        return pair, expert, read_bytes

    scratches: SimpleQueue[Scratch] = SimpleQueue()
    for _ in range(workers):
        scratches.put(Scratch())
    experts = {}
    with ExitStack() as stack:
        # One alone works in this thread: its priority may be raised while it does.
        run = map if workers == 1 else stack.enter_context(ThreadPoolExecutor(workers)).map
        for pair, expert, read_bytes in run(load, held):
            experts[pair] = expert
            if on_read is not None:
                on_read(sum(read_bytes))
    return ExpertShard(experts)

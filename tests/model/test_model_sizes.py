"""Sizes worked out from a model's shape, against what actors that hold it report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.linear import Linear
from model.loading import load_decoder, load_experts
from model.model_sizes import (
    count_parameters,
    kv_token_bytes,
    kv_tokens_held,
    role_bytes,
    topologies,
)
from tests.checkpoints import make_checkpoint
from tests.low_rank import make_low_rank

CPU = torch.device("cpu")
GIB = 1 << 30
MIXTRAL = ModelConfig(
    hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    intermediate_size=14336, num_experts=8, top_k=2, vocab_size=32000, rms_norm_eps=1e-5,
    rope_theta=1e6, max_position_embeddings=32768, dtype="bfloat16", bos_token_id=1,
    eos_token_ids=(2,),
)  # fmt: skip
MISTRAL = MIXTRAL.model_copy(update={"num_experts": 0, "top_k": 0, "sliding_window": 4096})
# Groups that are not full, and, where no kernel pads them, rows that fill no byte.
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {"hidden": 96, "ffn": 160, "experts": 3, "layers": 2},
    "small-odd": {"hidden": 18, "heads": 3, "kv_heads": 1, "head_dim": 6, "ffn": 5, "vocab": 33},
    "dense": {"hidden": 160, "ffn": 192, "experts": 0, "heads": 4, "kv_heads": 2},
    "tied": {"hidden": 64, "ffn": 96, "experts": 2, "tie": True},
    "low-rank": {"hidden": 96, "ffn": 160, "experts": 3, "layers": 2},
}
_EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}"
RANKS = {
    "model.layers.0.self_attn.k_proj": 4,
    "model.layers.1.self_attn.o_proj": 12,
    **{_EXPERT.format(0, 0, name): rank for name, rank in (("w1", 16), ("w2", 30), ("w3", 22))},
    _EXPERT.format(1, 2, "w3"): 10,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_are_what_the_loaded_roles_report(tmp_path: Path, shape: str, dtype: str) -> None:
    directory = make_checkpoint(tmp_path, **SHAPES[shape])
    if shape == "low-rank":
        make_low_rank(directory, RANKS)
    config = ModelConfig.from_dir(directory)
    checkpoint, torch_dtype = Checkpoint(directory), getattr(torch, dtype)
    pairs = [(i, e) for i in range(config.num_layers) for e in range(config.num_experts)]
    for bits in (16, 8, 4):
        decoder = load_decoder(checkpoint, config, torch_dtype, CPU, bits=bits)
        assert isinstance(decoder.head, Linear)
        is_copied = config.tie_word_embeddings and decoder.head.is_packed
        sizes = role_bytes(config, dtype, bits, copies_tied_head=is_copied)
        assert sizes.attention == decoder.num_bytes, bits
        if pairs:
            held = load_experts(checkpoint, config, pairs, torch_dtype, CPU, bits=bits)
            first = [pair for pair in pairs if pair[1] == 0]
            one = load_experts(checkpoint, config, first, torch_dtype, CPU, bits=bits)
            assert (sizes.by_expert[0], sizes.all_experts) == (one.num_bytes, held.num_bytes), bits
        else:
            assert sizes.expert == sizes.all_experts == 0
    cache = KVCache(config, 3, 4, torch_dtype, CPU)
    assert cache.num_bytes == 12 * kv_token_bytes(config, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_parameters_are_those_of_the_files(tmp_path: Path, shape: str) -> None:
    directory = make_checkpoint(tmp_path, **SHAPES[shape])
    if shape == "low-rank":
        make_low_rank(directory, RANKS)
    entries = Checkpoint(directory).entries.values()
    counted = count_parameters(ModelConfig.from_dir(directory))
    assert 4 * counted.total == sum(entry.size_bytes for entry in entries)
    assert json.loads((directory / "config.json").read_text())["dtype"] == "float32"


def test_the_published_numbers_come_out() -> None:
    mixtral, mistral = count_parameters(MIXTRAL), count_parameters(MISTRAL)
    assert (mixtral.total, mixtral.active) == (46_702_792_704, 12_879_925_248)
    assert mistral.total == mistral.active == 7_241_732_096
    sizes = role_bytes(MIXTRAL, "bfloat16")
    assert sizes.attention + sizes.all_experts == 2 * mixtral.total
    assert sizes.expert == 352_321_536
    assert kv_token_bytes(MIXTRAL, "bfloat16") == 128 * 1024
    assert role_bytes(MISTRAL, "bfloat16").attention == 2 * mistral.total


def test_a_window_bounds_what_a_sequence_holds() -> None:
    assert kv_tokens_held(MIXTRAL, 30_000, 16) == 30_000
    assert kv_tokens_held(MISTRAL, 1_000, 16) == 1_000
    assert 4096 <= kv_tokens_held(MISTRAL, 30_000, 16) <= 4096 + 2 * 16


@pytest.mark.parametrize(
    ("gib", "bits", "fitting"),
    [
        (16, 16, [8]),  # an eighth of 84 GiB is 10.5
        (24, 16, [4, 5, 6, 7, 8]),
        (48, 16, [2, 3, 4, 5, 6, 7, 8]),
        (80, 16, [2, 3, 4, 5, 6, 7, 8]),
        (139, 16, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (80, 8, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (24, 4, [2, 3, 4, 5, 6, 7, 8]),
        (2, 16, []),
    ],
)
def test_which_topologies_fit(gib: int, bits: int, fitting: list[int]) -> None:
    found = topologies(MIXTRAL, "bfloat16", gib * GIB, role_bytes(MIXTRAL, "bfloat16", bits))
    assert [fit.num_expert for fit in found] == list(range(9))
    assert [fit.num_expert for fit in found if fit.fits] == fitting
    for fit in found:
        if fit.fits:
            used = fit.attention_bytes + fit.kv_tokens * 128 * 1024
            assert used < gib * GIB and fit.expert_actor_bytes < gib * GIB
        # The whole model is somewhere, and an actor of average share holds no less.
        together = fit.attention_bytes + fit.num_expert * fit.expert_actor_bytes
        assert together >= sum(
            (role_bytes(MIXTRAL, "bfloat16", bits).attention,
             role_bytes(MIXTRAL, "bfloat16", bits).all_experts)
        )  # fmt: skip


def test_a_dense_model_has_one_topology() -> None:
    (fit,) = topologies(MISTRAL, "bfloat16", 24 * GIB, role_bytes(MISTRAL, "bfloat16"))
    assert fit.fits and fit.num_expert == 0 and fit.expert_actor_bytes == 0
    assert fit.attention_bytes == role_bytes(MISTRAL, "bfloat16").attention

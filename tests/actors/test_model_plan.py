"""Sizes and limits that follow from a config and a checkpoint, and what is refused."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.model_plan import ModelPlan, default_threads, generation_defaults, plan_model
from actors.ranks.engine_build import all_experts, build_engine, colocated_engine
from configs.model_settings import GenerationConfig
from configs.schema import WindroseConfig
from model.block_pool import BlockPool
from model.checkpoint import Checkpoint
from model.dispatch import LocalDispatcher
from model.experts import ExpertShard
from model.generation_config import GenerationDefaults
from model.loading import load_decoder, load_experts
from model.placement import split_evenly
from model.weights import attention_keys
from tests.checkpoints import make_checkpoint

CPU = torch.device("cpu")
# 2 layers x (keys, values) x 2 heads x 16 x 4 bytes: 512 bytes a token in float32.
TOKEN_BYTES = 512
CONFIGS: tuple[GenerationConfig, ...] = ("auto", "none")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plan"), max_positions=1000, eos=[2, 7])


def plan_of(directory: Path, device: str = "cpu", **settings: Any) -> ModelPlan:
    return plan_model(WindroseConfig(model=str(directory), **settings), device)


def test_defaults(directory: Path) -> None:
    plan = plan_of(directory)
    assert (plan.dtype, plan.torch_dtype, plan.device) == ("float32", torch.float32, "cpu")
    assert (plan.num_attention, plan.num_expert) == (1, 0)
    assert plan.limits.max_model_len == 1000
    assert plan.limits.max_num_seqs == 64
    assert plan.limits.max_num_batched_tokens == 2048
    assert plan.limits.block_size == 16
    assert plan.limits.enable_prefix_caching
    assert plan.limits.max_itl_stretch == 2.0
    assert set(plan.limits.eos_token_ids) == {2, 7}
    assert plan.kv_cache_bytes == 1 << 30
    # 1 GiB holds far more than 64 sequences of 1000 tokens can use.
    assert plan.num_blocks(CPU) == 64 * 63
    assert plan.attention_threads >= 1 and plan.expert_threads >= 1
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("cores", "attention", "expert", "waits_for_all", "threads"),
    [
        (2, 1, 0, True, (1, 1)),
        (2, 1, 2, True, (1, 1)),
        (16, 1, 2, True, (5, 5)),
        (2, 1, 0, False, (2, 2)),
        (2, 1, 2, False, (2, 2)),
        (2, 4, 8, False, (1, 1)),
        (16, 2, 8, False, (8, 4)),
        (16, 1, 1, False, (16, 16)),
    ],
)
def test_threads_share_out_the_cores(
    cores: int, attention: int, expert: int, waits_for_all: bool, threads: tuple[int, int]
) -> None:
    assert default_threads(cores, attention, expert, waits_for_all=waits_for_all) == threads


def test_settings_are_taken_over(directory: Path) -> None:
    plan = plan_of(
        directory,
        attention_actors=2,
        expert_actors=3,
        dtype="bfloat16",
        max_model_len=100,
        max_num_seqs=5,
        max_num_batched_tokens=33,
        block_size=8,
        enable_prefix_caching=False,
        max_itl_stretch=0,
        threads_per_actor=3,
        kv_cache_memory_bytes=TOKEN_BYTES // 2 * 8 * 20 + 1,
    )
    limits = plan.limits
    assert (limits.max_model_len, limits.max_num_seqs) == (100, 5)
    assert (limits.max_num_batched_tokens, limits.block_size) == (33, 8)
    assert not limits.enable_prefix_caching
    assert limits.max_itl_stretch == 0
    assert plan.torch_dtype == torch.bfloat16
    assert (plan.attention_threads, plan.expert_threads) == (3, 3)
    assert plan.num_blocks(CPU) == 20
    ranks = plan.ranks(3)
    assert (list(ranks.attention), list(ranks.expert), ranks.own) == ([0, 1], [2, 3, 4], 3)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_auto_is_the_dtype_of_the_checkpoint(tmp_path: Path, stored: Any) -> None:
    make_checkpoint(tmp_path, dtype=stored, vocab=300, layers=1)
    assert plan_of(tmp_path).dtype == stored
    assert plan_of(tmp_path, dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    ("tokens", "asked", "want"),
    [(160, None, 160), (175, None, 160), (1600, None, 1000), (160, 160, 160)],
)
def test_the_context_is_what_the_cache_holds_unless_asked_for(
    directory: Path, tokens: int, asked: int | None, want: int
) -> None:
    plan = plan_of(directory, kv_cache_memory_bytes=tokens * TOKEN_BYTES, max_model_len=asked)
    assert plan.limits.max_model_len == want
    assert plan.num_blocks(CPU) * 16 >= want


def test_a_context_cut_short_is_logged(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan_of(directory, kv_cache_memory_bytes=160 * TOKEN_BYTES)
    assert "max_model_len is 160, not the model's 1000" in caplog.text
    assert "--kv-cache-memory-bytes" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        plan_of(directory)
        plan_of(directory, kv_cache_memory_bytes=160 * TOKEN_BYTES, max_model_len=160)
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"expert_actors": 5}, ["expert_actors is 5", "4 experts"]),
        ({"max_model_len": 1001}, ["max_model_len is 1001", "1000"]),
        (
            {"max_model_len": 500, "kv_cache_memory_bytes": 100 * TOKEN_BYTES},
            ["kv_cache_memory_bytes", "holds 96 tokens", "max_model_len (500)"],
        ),
        ({"kv_cache_memory_bytes": 1}, ["kv_cache_memory_bytes (1)", "holds 0 tokens"]),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    directory: Path, settings: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ValueError) as refusal:
        plan_of(directory, **settings)
    for part in named:
        assert part in str(refusal.value)


def test_generation_config_gives_defaults_and_eos_unless_told_not_to(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, vocab=300, eos=2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 9], "top_p": 0.9}')
    auto, none = (WindroseConfig(model=str(tmp_path), generation_config=x) for x in CONFIGS)
    assert set(plan_model(auto, "cpu").limits.eos_token_ids) == {2, 9}
    assert set(plan_model(none, "cpu").limits.eos_token_ids) == {2}
    assert generation_defaults(auto, auto.model) == GenerationDefaults(top_p=0.9)
    assert generation_defaults(none, none.model) == GenerationDefaults()
    (tmp_path / "generation_config.json").write_text('{"top_p": 9}')
    with pytest.raises(ValueError, match=r"generation_config\.json: top_p is 9"):
        plan_model(auto, "cpu")
    plan_model(none, "cpu")


def test_with_a_sliding_window_the_cache_need_hold_no_more_than_it(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, vocab=300, max_positions=1000, sliding_window=32)
    # Blocks of 16: two, and one more where a window begins and ends within blocks.
    for blocks, longest in ((3, 1000), (2, 32)):
        plan = plan_of(directory, kv_cache_memory_bytes=blocks * 16 * TOKEN_BYTES)
        assert (plan.limits.max_model_len, plan.num_blocks(CPU)) == (longest, blocks)
    plan = plan_of(directory, max_num_seqs=2, max_num_batched_tokens=100)
    assert plan.limits.sliding_window == 32
    assert plan.num_blocks(CPU) == 2 * ((32 + 100 - 1 - 2) // 16 + 2)  # each with a chunk


def test_a_dense_model_has_no_experts_to_set_apart(tmp_path: Path) -> None:
    dense = make_checkpoint(tmp_path / "dense", experts=0)
    with pytest.raises(ValueError) as refusal:
        plan_of(dense, expert_actors=1)
    for part in ("expert_actors is 1", str(dense), "dense", "no experts", "--expert-actors 0"):
        assert part in str(refusal.value)
    plan, checkpoint = plan_of(dense, attention_actors=2), Checkpoint(dense)
    read: list[int] = []
    weights = load_decoder(checkpoint, plan.model, plan.torch_dtype, CPU, read.append)
    everything = checkpoint.total_bytes(checkpoint.entries)
    assert sum(read) == weights.num_bytes == everything
    assert all_experts(plan) == []


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, vocab=300)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match=r"model\.layers\.2\."):
        plan_of(tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        plan_of(tmp_path / "absent")


def test_a_gpus_cache_is_a_share_of_what_is_free(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(directory, device="cuda")
    assert plan.kv_cache_bytes is None
    assert plan.limits.max_model_len == 1000
    block = 16 * TOKEN_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (block * 1000, block * 5000))
    assert plan.num_blocks(CPU) == 800
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (block * 62, block * 5000))
    with pytest.raises(ValueError, match="lower max_model_len"):
        build_engine(
            plan,
            load_decoder(Checkpoint(directory), plan.model, plan.torch_dtype, CPU),
            LocalDispatcher(ExpertShard({})),
            CPU,
        )


def test_the_engine_gets_the_blocks_of_the_plan(directory: Path) -> None:
    plan = plan_of(directory, kv_cache_memory_bytes=TOKEN_BYTES * 320)
    engine = colocated_engine(plan, CPU).engine
    assert isinstance(engine.scheduler.pool, BlockPool)
    assert engine.scheduler.pool.num_blocks == 20
    assert engine.scheduler.limits == plan.limits


def test_each_role_reads_its_own_tensors_and_no_byte_more(directory: Path) -> None:
    plan, checkpoint = plan_of(directory, expert_actors=3), Checkpoint(directory)
    read: list[int] = []
    weights = load_decoder(checkpoint, plan.model, plan.torch_dtype, CPU, read.append)
    assert sum(read) == checkpoint.total_bytes(attention_keys(plan.model)) == weights.num_bytes
    placement = split_evenly(2, 4, [1, 2, 3])
    one_expert = 3 * 64 * 96 * 4
    total = 0
    for rank, held in [(1, 2), (2, 1), (3, 1)]:
        read.clear()
        shard = load_experts(
            checkpoint, plan.model, placement.held_by(rank), plan.torch_dtype, CPU, read.append
        )
        assert sum(read) == shard.num_bytes == 2 * held * one_expert
        total += shard.num_bytes
    assert total == len(all_experts(plan)) * one_expert


def test_quantized_weights_are_kept_beside_the_checkpoint_or_where_told(tmp_path: Path) -> None:
    one, other = (make_checkpoint(tmp_path / name / "model") for name in ("one", "other"))

    def where(model_dir: Path, **settings: Any) -> str | None:
        return plan_model(WindroseConfig(model=str(model_dir), **settings), "cpu").cache_dir

    assert where(one) is None
    assert where(one, quantization_cache=str(tmp_path)) is None
    assert where(one, quantization="int8") == ".windrose"  # beside it, wherever that lies
    assert where(one, quantization="int8", quantization_cache="none") is None
    told = {"quantization": "int4", "quantization_cache": str(tmp_path)}
    places = {where(model_dir, **told) for model_dir in (one, other)}
    assert len(places) == 2 and {Path(str(place)).parent for place in places} == {tmp_path}

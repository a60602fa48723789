"""What is computed from times and sizes alone."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from ops.bench import environment
from ops.bench.burst import Arrival, Burst
from ops.bench.floor import decode_step_bytes, prompt_flops
from ops.bench.report import Report, file_name, over_rounds, percentile_ms, ratios
from ops.bench.workload import WARM_UP_ROUND, Traffic, Workload, as_text

WORKLOAD = Workload(
    streams=(1, 3), prompt_tokens=7, output_tokens=5, rounds=2, vocab_size=400, seed=1
)


def test_every_burst_has_prompts_of_its_own_and_a_seed_repeats_them() -> None:
    again = replace(WORKLOAD)
    seen: set[tuple[int, ...]] = set()
    for streams in WORKLOAD.streams:
        for index in (WARM_UP_ROUND, 0, 1):
            prompts = WORKLOAD.prompts(streams, index)
            assert prompts == again.prompts(streams, index)
            assert [len(prompt) for prompt in prompts] == [7] * streams
            seen.update(prompts)
    assert len(seen) == 3 * (1 + 3)
    assert replace(WORKLOAD, seed=2).prompts(3, 0) != WORKLOAD.prompts(3, 0)
    longer = replace(WORKLOAD, prompt_tokens=9)
    assert longer.prompts(3, 0)[0][:7] != WORKLOAD.prompts(3, 0)[0]  # one begins no other
    narrow = replace(WORKLOAD, vocab_size=261, prompt_tokens=200).prompts(1, 0)
    assert set(narrow[0]) == {259, 260}


def test_rates_and_latencies_of_a_burst() -> None:
    burst = Burst(
        (
            (Arrival(1.0, 1), Arrival(2.0, 1), Arrival(3.0, 1)),
            (Arrival(2.0, 1), Arrival(6.0, 3)),
            (),  # failed
        )
    )
    assert burst.num_tokens == 7
    assert burst.output_tok_s == 7 / 6
    assert burst.decode_tok_s == (1 + 3) / (6 - 2)  # what came after second 2
    assert burst.first_token_s() == [1.0, 2.0]
    assert burst.last_token_s() == [3.0, 6.0]
    assert burst.gaps_s() == [1.0, 1.0, 4.0]


def test_a_prompt_as_text_has_a_word_for_every_id() -> None:
    [prompt] = Traffic(50, 1, 32000, seed=3).prompts(1, 0)
    words = as_text(prompt).split(" ")
    assert len(words) == 50 and all(word.isalpha() for word in words)
    assert as_text(prompt) != as_text(Traffic(50, 1, 32000, seed=4).prompts(1, 0)[0])


def test_of_two_results_the_ratio_is_that_of_their_medians() -> None:
    own = {"a": {"median": 6.0}, "b": {"median": 1.0}, "c": None, "d": {"median": 1.0}}
    other = {"a": {"median": 2.0}, "b": {"median": 4.0}, "c": {"median": 1.0}, "d": None}
    assert ratios(own, other, ("a", "b", "c", "d")) == {"a": 3.0, "b": 0.25}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "2026-03-04-serve-demo-2-cores.json"),
        ("org/Mixtral 8x7B", "2026-03-04-serve-Mixtral-8x7B-2-cores.json"),
        (None, "2026-03-04-serve-2-cores.json"),
    ],
)
def test_a_result_is_filed_under_date_bench_model_and_cores(model: str | None, name: str) -> None:
    made = Report("serve", {"model": model}, [], "")
    assert file_name(made, datetime(2026, 3, 4, 23, 59, tzinfo=UTC), 2) == name


def test_a_burst_of_failures_has_no_figures() -> None:
    burst = Burst(((), ()))
    assert burst.num_tokens == 0
    assert burst.output_tok_s == 0
    assert burst.decode_tok_s is None
    assert percentile_ms(burst.first_token_s(), 50) is None


def test_summaries() -> None:
    assert over_rounds([3.0, 1.0, 2.0, None]) == {
        "median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0, None],
    }  # fmt: skip
    assert over_rounds([None]) is None
    assert percentile_ms([0.001, 0.002, 0.003], 50) == 2.0
    assert percentile_ms([0.0, 1.0], 99) == 990.0


MIXTRAL = ModelConfig(
    hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    intermediate_size=14336, num_experts=8, top_k=2, vocab_size=32000, rms_norm_eps=1e-5,
    rope_theta=1e6, max_position_embeddings=32768, bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip


def test_a_decode_step_reads_the_active_parameters() -> None:
    one = decode_step_bytes(MIXTRAL, 1, torch.bfloat16)
    # Published: 12.9 B active parameters, embedding table included, of which one row is read.
    assert one == 2 * (12_879_925_248 - 32000 * 4096 + 4096)
    assert decode_step_bytes(MIXTRAL, 1, torch.float32) == 2 * one
    # 46.7 B in all; many rows hit every expert.
    many = decode_step_bytes(MIXTRAL, 1000, torch.bfloat16)
    assert many == 2 * (46_702_792_704 - 32000 * 4096 + 1000 * 4096)
    # Two rows: each expert is missed with probability 3/4 twice, so 3.5 of 8 are hit.
    expert_bytes = 2 * 32 * 3 * 4096 * 14336
    two = decode_step_bytes(MIXTRAL, 2, torch.bfloat16)
    assert two - one == pytest.approx(1.5 * expert_bytes, abs=10_000)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_decode_step_reads_fewer_bytes_of_quantized_weights(bits: int) -> None:
    head, norms, gates = 32000 * 4096, 65 * 4096, 32 * 8 * 4096
    matrices = 12_879_925_248 - 2 * head - norms - gates
    got = decode_step_bytes(MIXTRAL, 1, torch.bfloat16, bits)
    assert got == 2 * (norms + gates + 4096) + head + matrices * bits // 8


def test_a_prompt_is_multiplied_by_the_active_parameters() -> None:
    embedding, norms, head = 32000 * 4096, 65 * 4096, 32000 * 4096
    # Published active parameters; the table is looked up, norms are no products.
    per_token = 2 * (12_879_925_248 - embedding - norms - head)
    scores_and_values = 2 * 2 * 4096 * 32
    assert prompt_flops(MIXTRAL, 1) == per_token + 2 * head + scores_and_values
    pairs = sum(position + 1 for position in range(100))
    assert prompt_flops(MIXTRAL, 100) == 100 * per_token + 2 * head + pairs * scores_and_values


@pytest.mark.parametrize("window", [1, 7, 100, 1000])
def test_a_sliding_window_bounds_what_a_token_looks_at(window: int) -> None:
    slid = MIXTRAL.model_copy(update={"sliding_window": window})
    fewer = sum(max(0, position + 1 - window) for position in range(100))
    assert prompt_flops(MIXTRAL, 100) - prompt_flops(slid, 100) == fewer * 2 * 2 * 4096 * 32


def test_a_dense_model_reads_and_multiplies_all_it_has() -> None:
    dense = MIXTRAL.model_copy(update={"num_experts": 0, "top_k": 0})
    parameters = 7_241_732_096  # published, of Mistral-7B
    embedding, norms, head = 32000 * 4096, 65 * 4096, 32000 * 4096
    read = decode_step_bytes(dense, 3, torch.bfloat16)
    assert read == 2 * (parameters - embedding + 3 * 4096)
    products = 2 * (parameters - embedding - norms - head)
    assert prompt_flops(dense, 1) == products + 2 * head + 2 * 2 * 4096 * 32


def test_a_tied_head_is_read_whole() -> None:
    tied = MIXTRAL.model_copy(update={"tie_word_embeddings": True})
    assert decode_step_bytes(tied, 1, torch.bfloat16) == decode_step_bytes(
        MIXTRAL, 1, torch.bfloat16
    )


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def test_the_commit_is_that_of_the_repository_itself(tmp_path: Path) -> None:
    assert environment.commit(tmp_path) == ("unknown", False)
    git(tmp_path, "init", "--quiet")
    assert environment.commit(tmp_path) == ("unknown", False)  # no commit yet
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit, dirty = environment.commit(tmp_path)
    assert len(commit) == 40 and not dirty
    (tmp_path / "below" / "file").write_text("two")
    assert environment.commit(tmp_path) == (commit, True)
    assert environment.commit(tmp_path / "below") == ("unknown", False)

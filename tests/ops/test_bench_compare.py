"""`python -m ops.bench compare` with small servers as processes of their own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ops import server_process
from ops.bench.__main__ import main
from ops.bench.burst import Arrival
from ops.bench.compare import turns, used_s
from ops.bench.compare_report import BURST_FIGURES, PREFILL_FIGURES, Measured, Shape, result_of
from ops.bench.completions import Outcome
from ops.bench.workload import Traffic
from tests.ops.bench_runs import check_envelope, check_summary, run, stub_command

pytestmark = pytest.mark.alone


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What all servers of a test say, in order."""
    return tmp_path / "log"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path) -> Path:
    """A checkpoint's config; `windrose serve` of it starts the stub instead."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(
        '{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64,'
        '"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,'
        '"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2,'
        '"vocab_size": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e6,'
        '"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2}'
    )

    def serve(model_dir: str, flags: Sequence[str], port: int | str) -> list[str]:
        assert model_dir == str(directory)
        return list(stub_command("--name", "windrose", "--log", log, *flags, port=port))

    monkeypatch.setattr(server_process, "windrose_serve", serve)
    return directory


def peer(name: str, log: Path, *flags: object) -> list[str]:
    words = stub_command("--name", name, "--log", log, *flags)
    return ["--peer", f"{name}={shlex.join(words)}"]


def compare(
    capfd: pytest.CaptureFixture[str], model: Path, *flags: object
) -> tuple[int, dict[str, Any], str]:
    return run(
        capfd, "compare", model, "--streams", "1,2", "--prompt-tokens", 6, "--output-tokens", 20,
        "--rounds", 2, "--prefill-tokens", 30, *flags,
    )  # fmt: skip


def test_servers_take_turns_and_all_stay_up(
    model: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, line, err = compare(
        capfd, model, "--own-args", "--token-ms 2", *peer("slow", log, "--token-ms", 12, "--no-ids")
    )
    assert status == 0, err
    check_envelope(line)
    contenders = line["config"]["contenders"]
    assert list(contenders) == ["windrose", "slow"]
    assert contenders["slow"]["version"] == "slow 1.5"
    assert contenders["windrose"]["fields"] == {"ignore_eos": True, "return_token_ids": True}
    one, two, prompt = line["results"]
    assert (one["streams"], two["streams"], prompt["prefill_tokens"]) == (1, 2, 30)
    for result, tokens in ((one, 20), (two, 40), (prompt, 1)):
        assert result["errors"] == 0
        for name in ("windrose", "slow"):
            figures = result["contenders"][name]
            assert figures["output_tokens"] == [tokens] * 2
            assert figures["prompt_tokens"] == ([30] if result is prompt else [6])
            for key in PREFILL_FIGURES if result is prompt else BURST_FIGURES:
                check_summary(figures[key], rounds=2)
                assert result["ratio"]["slow"][key] == pytest.approx(
                    result["contenders"]["windrose"][key]["median"]
                    / result["contenders"]["slow"][key]["median"],
                    rel=1e-3,
                )
    for result in (one, two):  # 2 ms a token and 12
        assert result["ratio"]["slow"]["decode_tok_s"] > 2
        assert result["ratio"]["slow"]["itl_ms"] < 0.5
    assert "ratio to slow" in err

    said = [[*entry.split(), ""][:3] for entry in log.read_text().splitlines()]
    assert [words[0] for words in said if words[1] == "start"] == ["windrose", "slow"]
    assert sorted(words[0] for words in said if words[1] == "end") == ["slow", "windrose"]
    assert [words[1] for words in said[-2:]] == ["end", "end"]
    # Warm-ups have 16 tokens. Streams 1, streams 2 and the prompt, and who begins alternates.
    bursts = [name for name, word, tokens in said if word == "asked" and tokens == "20"]
    own, other = "windrose", "slow"
    assert bursts == [own, other, own, own, other, other, other, own, other, other, own, own]
    warm_ups = [name for name, word, tokens in said if word == "asked" and tokens == "16"]
    assert warm_ups == [own, other, own, own, other, other]


def test_restarted_servers_are_never_up_together(
    model: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, line, err = compare(capfd, model, "--restart", *peer("other", log))
    assert status == 0, err
    assert line["config"]["restart"] is True
    said = [entry.split() for entry in log.read_text().splitlines()]
    lives = [(words[0], words[1]) for words in said if words[1] in ("start", "end")]
    assert lives == [
        (name, word)
        for name in ("windrose", "other", "other", "windrose")
        for word in ("start", "end")
    ]
    for result in line["results"]:
        for figures in result["contenders"].values():
            assert figures["others_busy_cores"]["max"] == 0


def test_a_peer_that_is_not_idle_is_found_out(
    model: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, line, err = compare(
        capfd, model, "--own-args", "--token-ms 15", *peer("busy", log, "--token-ms", 15, "--busy"),
        "--streams", 1, "--rounds", 1, "--prefill-tokens", 0,
    )  # fmt: skip
    assert status == 0
    [result] = line["results"]
    one = result["contenders"]
    assert one["windrose"]["others_busy_cores"]["median"] > 0.2
    assert one["busy"]["others_busy_cores"]["median"] < 0.1
    noted = [entry for entry in err.splitlines() if "busy elsewhere" in entry]
    assert any(entry.startswith("streams 1, round 1, windrose:") for entry in noted)


def test_a_server_that_knows_only_openais_fields_and_text_can_be_asked(
    model: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    strict = peer("strict", log, "--strict", "--no-ids", "--no-health")
    status, line, err = compare(
        capfd, model, *strict, "--prompt-text", "--peer-fields", 'strict={"own_field": "{x}"}'
    )
    assert status == 0, err
    assert line["config"]["prompts"] == "text"
    assert line["config"]["contenders"]["strict"]["fields"] == {"own_field": "{x}"}
    assert line["results"][0]["contenders"]["strict"]["prompt_tokens"] == [6]
    said = [entry.split() for entry in log.read_text().splitlines()]
    assert {(words[0], *words[3:]) for words in said if words[1] == "asked"} == {
        ("windrose", "str", "ignore_eos,return_token_ids"),
        ("strict", "str", "own_field"),
    }


def test_a_peer_that_refuses_is_said_and_nothing_runs_on(
    model: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(model), "--rounds", "1", *peer("strict", log, "--strict")]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "strict: status 422" in err.splitlines()[-1]
    assert "ignore_eos" in err.splitlines()[-1]
    said = [entry.split()[1] for entry in log.read_text().splitlines()]
    assert said.count("start") == said.count("end") == 2


def test_a_peer_that_does_not_start_ends_the_others(
    model: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(model), *peer("bad", log, "--no-such-flag")]) == 1
    assert "bad ended with status 2" in capfd.readouterr().err.splitlines()[-1]
    assert [entry.split()[1] for entry in log.read_text().splitlines()] == ["start", "end"]


@pytest.mark.parametrize("restart", [False, True])
def test_everyone_has_every_shape_in_every_round(restart: bool) -> None:
    names = ["a", "b", "c"]
    order = list(turns(names, 4, 3, restart=restart))
    assert len({turn[:3] for turn in order}) == len(order) == 3 * 4 * 3
    assert [turn.round_index for turn in order] == sorted(turn.round_index for turn in order)
    first = [turn.name for turn in order if turn.shape == 0]
    assert first == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    begun = [turn for turn in order if turn.anew]
    if not restart:
        assert begun == []
        return
    assert [(turn.round_index, turn.name) for turn in begun] == [
        (index, name) for index in range(3) for name in (names if index % 2 == 0 else names[::-1])
    ]
    for earlier, later in pairwise(order):
        assert later.anew or (later.name, later.round_index) == (earlier.name, earlier.round_index)


def test_processor_time_counts_new_processes_and_forgets_ended_ones() -> None:
    assert used_s({1: 5.0, 2: 7.0}, {1: 5.5, 3: 0.25}) == 0.75


def outcome(*arrivals: tuple[float, int], error: str | None = None) -> Outcome:
    return Outcome(100.0, tuple(Arrival(*one) for one in arrivals), error, 6)


def test_figures_are_medians_over_rounds_and_ratios_of_them() -> None:
    shape = Shape(2, Traffic(6, 3, 512, 0), BURST_FIGURES)
    even = Measured([outcome((1.0, 1), (2.0, 1), (3.0, 1)), outcome((1.0, 1), (3.0, 2))], 0.0)
    late = Measured([outcome((2.0, 1), (4.0, 2)), outcome((2.0, 1), (4.0, 2))], 0.5)
    broken = Measured([outcome(error="gone"), outcome((2.0, 1), (4.0, 2))], 0.0)
    result = result_of(shape, {"windrose": [even, even], "peer": [late, broken]})
    own, other = result["contenders"]["windrose"], result["contenders"]["peer"]
    assert own["output_tok_s"]["rounds"] == [2.0, 2.0]
    assert own["decode_tok_s"]["median"] == 2.0  # 4 tokens in the 2 s after the first ones
    assert own["ttft_ms"]["median"] == 1000.0
    assert own["itl_ms"]["median"] == 1000.0  # gaps of 1, 1 and 2 s
    assert other["output_tok_s"]["rounds"] == [1.5, 0.75]
    assert other["errors"] == result["errors"] == 1
    assert other["error_messages"] == {"gone": 1}
    assert other["others_busy_cores"]["max"] == 0.5
    assert result["ratio"] == {
        "peer": {"output_tok_s": 1.7778, "decode_tok_s": 1.3333, "ttft_ms": 0.5, "itl_ms": 0.5}
    }


def test_a_prompt_by_itself_is_a_rate_of_its_tokens() -> None:
    shape = Shape(1, Traffic(30, 1, 512, 0), PREFILL_FIGURES)
    result = result_of(shape, {"windrose": [Measured([outcome((0.5, 1))], 0.0)]})
    assert result["prefill_tokens"] == 30
    assert result["contenders"]["windrose"]["prefill_tok_s"]["median"] == 60.0
    failed = result_of(shape, {"windrose": [Measured([outcome(error="gone")], 0.0)]})
    assert failed["contenders"]["windrose"]["prefill_tok_s"] is None

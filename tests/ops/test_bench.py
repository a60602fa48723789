"""`python -m ops.bench` offline: the engine with and without a peer, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.messages import TokenEvent
from actors.ranks.engine import Engine
from actors.scheduling.scheduler import StepPlan
from model.config import ModelConfig
from ops.bench.__main__ import main
from ops.bench.floor import prompt_flops
from tests.checkpoints import make_checkpoint
from tests.ops.bench_runs import check_envelope, check_summary, run
from tests.ports import free_port


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Every token is an EOS: whoever does not ignore them stops at once.
    return make_checkpoint(tmp_path_factory.mktemp("bench") / "tiny", eos=list(range(512)))


def test_the_engine_bench_counts_what_was_asked_and_computes_what_transformers_does(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line, err = run(
        capsys, "engine", checkpoint, "--streams", "1,3", "--prompt-tokens", 20,
        "--output-tokens", 6, "--rounds", 2, "--threads", 1, "--compare", "transformers",
    )  # fmt: skip
    assert status == 0
    check_envelope(line)
    assert line["bench"] == "engine"
    assert line["config"]["model"] == "tiny"
    assert line["config"]["dtype"] == "float32"
    assert line["config"]["threads"] == 1
    assert line["config"]["preemptions"] == 0
    assert [result["streams"] for result in line["results"]] == [1, 3]
    for result in line["results"]:
        for name in ("windrose", "transformers"):
            figures = result[name]
            assert figures["output_tokens"] == [result["streams"] * 6] * 2
            for key in ("output_tok_s", "decode_tok_s", "ttft_ms", "ttft_last_ms"):
                check_summary(figures[key], rounds=2)
            decode_bytes_s = (
                figures["decode_tok_s"]["median"] / result["streams"] * result["decode_step_bytes"]
            )
            assert figures["floor_fraction"] == pytest.approx(
                decode_bytes_s / (result["read_gb_s"]["median"] * 1e9), rel=1e-3
            )
            assert figures["ttft_ms"]["median"] <= figures["ttft_last_ms"]["median"]
        assert result["same_tokens"] == 1.0
        for key, ratio in result["ratio"].items():
            assert ratio == pytest.approx(
                result["windrose"][key]["median"] / result["transformers"][key]["median"], rel=1e-3
            )
        assert set(result["ratio"]) == {"output_tok_s", "decode_tok_s", "ttft_ms", "ttft_last_ms"}
    assert "output tok/s" in err
    turns = [entry.split(":")[0] for entry in err.splitlines() if entry.startswith("streams 3, ro")]
    assert [turn.split()[-1] for turn in turns] == [
        "windrose", "transformers", "transformers", "windrose",
    ]  # fmt: skip


def test_beside_the_pace_of_a_server_long_prompts_come_in_parts_and_tokens_are_the_same(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[Engine, list[int]] = {}
    run_step = Engine.run_step

    def noting(engine: Engine, plan: StepPlan) -> list[TokenEvent]:
        rows.setdefault(engine, []).append(plan.num_rows)
        return run_step(engine, plan)

    monkeypatch.setattr(Engine, "run_step", noting)
    _, line, _ = run(
        capsys, "engine", checkpoint, "--streams", "1", "--prompt-tokens", 700,
        "--output-tokens", 2, "--rounds", 1, "--threads", 1, "--compare", "paced",
    )  # fmt: skip
    whole, paced = rows.values()
    assert set(whole) == {700, 1}
    assert paced[0] < 700, "it knows nothing yet of how fast this machine is"
    [result] = line["results"]
    assert result["same_tokens"] == 1.0 and set(result["ratio"]) > {"output_tok_s"}


def test_decode_says_only_how_fast_it_decodes(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line, err = run(
        capsys, "decode", checkpoint, "--streams", "2", "--prompt-tokens", 8,
        "--output-tokens", 5, "--rounds", 2, "--threads", 1,
    )  # fmt: skip
    assert status == 0
    check_envelope(line)
    assert line["bench"] == "decode"
    [result] = line["results"]
    own = result["windrose"]
    assert set(own) == {"output_tokens", "decode_tok_s", "floor_fraction"}
    assert own["output_tokens"] == [10, 10]
    check_summary(own["decode_tok_s"], rounds=2)
    steps_s = own["decode_tok_s"]["median"] / 2
    assert own["floor_fraction"] == pytest.approx(
        steps_s * result["decode_step_bytes"] / (result["read_gb_s"]["median"] * 1e9), rel=1e-3
    )
    assert "TTFT" not in err and "memory read at" in err


def test_prefill_says_how_fast_one_prompt_is_read(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line, err = run(
        capsys, "prefill", checkpoint, "--prompt-tokens", 40, "--rounds", 2, "--threads", 1,
        "--dtype", "bfloat16", "--compare", "transformers",
    )  # fmt: skip
    assert status == 0
    assert line["bench"] == "prefill"
    [result] = line["results"]
    flops = prompt_flops(ModelConfig.from_dir(checkpoint), 40)
    assert result["prompt_flops"] == flops
    check_summary(result["matmul_gflop_s"], rounds=2)
    for name in ("windrose", "transformers"):
        figures = result[name]
        assert set(figures) == {"output_tokens", "prefill_tok_s", "floor_fraction"}
        assert figures["output_tokens"] == [1, 1]
        prompts_s = figures["prefill_tok_s"]["median"] / 40
        assert figures["floor_fraction"] == pytest.approx(
            prompts_s * flops / (result["matmul_gflop_s"]["median"] * 1e9), rel=1e-3
        )
    assert set(result["ratio"]) == {"prefill_tok_s"}
    assert "prefill tok/s" in err and "GFLOP/s" in err


def test_a_saved_result_is_the_line_and_never_overwrites_another(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        run(
            capsys, "decode", checkpoint, "--streams", "1", "--prompt-tokens", 4,
            "--output-tokens", 2, "--rounds", 1, "--threads", 1, "--save",
            "--save-dir", tmp_path / "results",
        )[1]
        for _ in range(2)
    ]  # fmt: skip
    [file] = (tmp_path / "results").iterdir()
    day, cores = lines[0]["date"][:10], lines[0]["hardware"]["cores"]
    assert file.name == f"{day}-decode-tiny-{cores}-cores.json"
    assert [json.loads(text) for text in file.read_text().splitlines()] == lines


def test_one_output_token_has_no_decode_rate(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, line, _ = run(
        capsys, "engine", checkpoint, "--streams", "2", "--prompt-tokens", 4,
        "--output-tokens", 1, "--rounds", 1, "--threads", 1, "--dtype", "bfloat16",
    )  # fmt: skip
    [result] = line["results"]
    assert line["config"]["dtype"] == "bfloat16"
    assert result["windrose"]["output_tokens"] == [2]
    assert result["windrose"]["decode_tok_s"] is None
    assert result["windrose"]["floor_fraction"] is None
    assert "ratio" not in result and "transformers" not in result


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["http", "--url", "http://127.0.0.1:{port}"], 1, "no server answers"),
        (["http", "--url", "http://127.0.0.1:{port}", "--model", "m"], 1, "127.0.0.1:{port}"),
        (["http", "--url", "https://example.org"], 2, "http://"),
        (["http", "--url", "http://127.0.0.1:{port}", "--vocab-size", "259"], 2, "259"),
        (["engine", "no-such-directory"], 2, "config.json"),
        (["engine", "{model}", "--prompt-tokens", "4096"], 2, "4096"),
        (["decode", "{model}", "--output-tokens", "1"], 2, "--output-tokens 1"),
        (["serve", "--url", "http://127.0.0.1:{port}", "--rate", "3"], 1, "no server answers"),
        (["serve", "--burst", "2", "--requests", "3"], 2, "--requests"),
        (["serve", "--rate", "2", "--rounds", "3"], 2, "--rounds"),
        (["dispatch", "--top-k", "9"], 2, "--top-k 9"),
        (["dispatch", "--expert-actors", "9"], 2, "--expert-actors 9"),
        (["startup", "m", "--command", "true"], 2, "{{port}}"),
        (["startup", "m", "--command", "no-such-program {{port}}"], 1, "no-such-program"),
        (["compare", "{model}", "--peer", "windrose=a {{port}}"], 2, "--peer windrose"),
        (["compare", "{model}", "--peer", "a=a", "--peer-fields", "b={{}}"], 2, "--peer-fields b"),
        (["compare", "{model}", "--peer", "a=a", "--peer-fields", "a=1"], 2, "--peer-fields a"),
        (["compare", "{model}", "--peer", "a=a", "--prefill-tokens", "-1"], 2, "-1"),
        (["figure", "no-such-file", "-o", "f.svg"], 1, "no-such-file"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    argv: list[str],
    status: int,
    said: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"port": free_port(), "model": checkpoint}
    assert main([argument.format(**values) for argument in argv]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said.format(**values) in err


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        *((["http", f"--streams={value}"], "--streams") for value in ("0", "1,,2", "-1", "two")),
        *((["serve", f"--rate={value}"], "--rate") for value in ("0", "1,", "-1", "inf", "two")),
        (["serve", "--rate=1", "--concurrency=1"], "--concurrency"),
        (["serve"], "--rate"),
        (["compare", "m", "--peer", "name"], "--peer"),
        (["compare", "m", "--peer", "=command"], "--peer"),
        (["compare", "m"], "--peer"),
    ],
)
def test_flags_of_the_wrong_form_are_named(
    argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert flag in capsys.readouterr().err

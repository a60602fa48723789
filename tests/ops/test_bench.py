from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.errors import Unavailable
from actors.messages import GenerateRequest, TokenEvent
from model.config import ModelConfig
from ops.bench import environment
from ops.bench.__main__ import main
from ops.bench.burst import Arrival, Burst
from ops.bench.floor import decode_step_bytes
from ops.bench.http_stream import Answer, BrokenAnswer, Endpoint, post
from ops.bench.report import over_rounds, percentile_ms
from ops.bench.workload import WARM_UP_ROUND, Workload
from tests.actors.http_serving import MODEL, Step, make_state, serving, source_of
from tests.checkpoints import make_checkpoint
from tests.ports import free_port

WORKLOAD = Workload(
    streams=(1, 3), prompt_tokens=7, output_tokens=5, rounds=2, vocab_size=400, seed=1
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Every token is an EOS: whoever does not ignore them stops at once.
    return make_checkpoint(tmp_path_factory.mktemp("bench") / "tiny", eos=list(range(512)))


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, the last line of stdout, and stderr."""
    status = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    line: dict[str, Any] = json.loads(out.splitlines()[-1])
    return status, line, err


def check_envelope(line: dict[str, Any]) -> None:
    assert set(line) == {
        "bench", "commit", "dirty", "date", "hardware", "versions", "config", "results",
    }  # fmt: skip
    assert isinstance(line["dirty"], bool)
    assert set(line["hardware"]) == {"cpu", "cores", "memory_bytes", "gpu"}
    assert line["hardware"]["memory_bytes"] > 2**20
    assert line["versions"]["torch"] == torch.__version__
    assert {"windrose", "transformers", "ray"} <= set(line["versions"])


def check_summary(figure: dict[str, Any], rounds: int) -> None:
    assert len(figure["rounds"]) == rounds
    assert 0 < figure["min"] <= figure["median"] <= figure["max"]


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
    order = [entry.split()[-3] for entry in err.splitlines() if entry.startswith("streams 3, ro")]
    assert order == ["windrose:", "transformers:", "transformers:", "windrose:"]


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


def counting(request: GenerateRequest) -> list[Step]:
    """As many tokens as asked for: the first alone, the rest two at a time."""
    ids = [300 + i for i in range(request.params.max_tokens)]
    groups = [tuple(ids[:1]), *(tuple(ids[i : i + 2]) for i in range(1, len(ids), 2))]
    events = [TokenEvent(request.request_id, group) for group in groups]
    return [*events[:-1], replace(events[-1], finish_reason="length")]


def test_the_http_bench_counts_what_was_asked_of_a_real_server(
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = make_state(counting)
    with serving(state) as client:
        status, line, err = run(
            capsys, "http", "--url", f"{client.base_url}/v1", "--streams", "1,4",
            "--prompt-tokens", 9, "--output-tokens", 21, "--rounds", 2, "--seed", 7,
        )  # fmt: skip
    assert status == 0
    check_envelope(line)
    assert line["bench"] == "http"
    assert line["config"]["model"] == MODEL
    assert [result["streams"] for result in line["results"]] == [1, 4]
    for result in line["results"]:
        assert result["requests"] == result["streams"] * 2
        assert result["output_tokens"] == [result["streams"] * 21] * 2
        assert result["errors"] == 0 and result["error_messages"] == {}
        check_summary(result["output_tok_s"], rounds=2)
        for key in ("ttft_ms", "itl_ms"):
            assert 0 <= result[key]["p50"] <= result[key]["p99"]
    assert "TTFT" in err

    asked = source_of(state).requests
    assert len(asked) == 1 + (1 + 2) * 1 + (1 + 2) * 4  # a first one, then warm-up and rounds
    measured = [request for request in asked if request.params.max_tokens == 21]
    assert len(measured) == 2 * (1 + 4)
    assert all(r.params.greedy and r.params.ignore_eos for r in asked)
    assert len({r.prompt_token_ids for r in measured}) == len(measured)
    for request in measured:
        assert len(request.prompt_token_ids) == 9
        assert all(259 <= token_id < 2048 for token_id in request.prompt_token_ids)


def test_requests_that_fail_are_counted_and_fail_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def one_in_three(request: GenerateRequest) -> list[Step]:
        events = counting(request)
        if request.params.max_tokens < 20:  # warming up
            return events
        number = len([r for r in source_of(state).requests if r.params.max_tokens == 20])
        if number % 3 == 0:
            return [*events[:4], Unavailable("gone for lunch")]
        if number % 3 == 1:
            return [Unavailable("not even begun")]
        return events

    state = make_state(one_in_three)
    with serving(state) as client:
        status, line, _ = run(
            capsys, "http", "--url", client.base_url, "--streams", "3", "--prompt-tokens", 4,
            "--output-tokens", 20, "--rounds", 2,
        )  # fmt: skip
    assert status == 1
    [result] = line["results"]
    assert result["requests"] == 6
    assert result["errors"] == 4
    messages = result["error_messages"]
    assert sorted(messages.values()) == [2, 2]
    assert any("gone for lunch" in text for text in messages)
    assert any("status 503" in text and "not even begun" in text for text in messages)
    assert result["output_tokens"] == [20 + 7] * 2  # one whole, one cut after 1 + 3 * 2, one none


def test_a_stream_of_too_few_tokens_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def short(request: GenerateRequest) -> list[Step]:
        wanted = request.params.max_tokens
        few = replace(request.params, max_tokens=wanted - 1) if wanted > 16 else request.params
        return counting(replace(request, params=few))

    with serving(make_state(short)) as client:
        status, line, _ = run(
            capsys, "http", "--url", client.base_url, "--streams", "2", "--output-tokens", 18,
            "--prompt-tokens", 4, "--rounds", 1,
        )  # fmt: skip
    assert status == 1
    assert line["results"][0]["error_messages"] == {"17 tokens instead of 18": 2}


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["http", "--url", "http://127.0.0.1:{port}"], 1, "no server answers"),
        (["http", "--url", "http://127.0.0.1:{port}", "--model", "m"], 1, "127.0.0.1:{port}"),
        (["http", "--url", "https://example.org"], 2, "http://"),
        (["http", "--url", "http://127.0.0.1:{port}", "--vocab-size", "259"], 2, "259"),
        (["engine", "no-such-directory"], 2, "config.json"),
        (["engine", "{model}", "--prompt-tokens", "4096"], 2, "4096"),
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


@pytest.mark.parametrize("streams", ["0", "1,,2", "-1", "two"])
def test_streams_are_positive_numbers(streams: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["http", f"--streams={streams}"])
    assert "--streams" in capsys.readouterr().err


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
    assert burst.gaps_s() == [1.0, 1.0, 4.0]


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


def test_a_tied_head_is_read_whole() -> None:
    tied = MIXTRAL.model_copy(update={"tie_word_embeddings": True})
    assert decode_step_bytes(tied, 1, torch.bfloat16) == decode_step_bytes(
        MIXTRAL, 1, torch.bfloat16
    )


def answer_to(response: bytes, cut: Callable[[bytes], list[bytes]]) -> Answer:
    """What post() makes of a server that writes `response` in pieces and hangs up."""

    async def converse() -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"POST /below/v1/completions HTTP/1.1\r\n")
            assert await reader.readexactly(2) == b"{}"
            for piece in cut(response):
                writer.write(piece)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            root = f"http://127.0.0.1:{port}/below/v1/"
            return await post(Endpoint.of(root, "/v1/completions"), b"{}")

    return asyncio.run(converse())


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


EVENTS = 'data: {"a": "x\u2028y"}\n\n: a comment\n\ndata: two\r\n\r\ndata: [DONE]\n\n'.encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)] + [b""]
    return b"".join(b"%X;ext=1\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize(
    "response",
    [
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(EVENTS, 11),
        OK + b"transfer-encoding: Chunked\r\n\r\n" + chunked(EVENTS, 1000),
        OK + b"\r\n" + EVENTS,
    ],
    ids=["small chunks", "one chunk", "until closed"],
)
def test_events_are_read_however_they_are_cut(
    response: bytes, cut: Callable[[bytes], list[bytes]]
) -> None:
    answer = answer_to(response, cut)
    assert answer.status == 200
    events = list(answer.events())
    assert [data for _, data in events] == ['{"a": "x\u2028y"}', "two", "[DONE]"]
    times = [time_s for time_s, _ in events]
    assert times == sorted(times)
    assert answer.text() == EVENTS.decode()


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"SMTP\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(EVENTS, 11)[:-9],
        OK + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
    ids=["nothing", "not HTTP", "cut off", "not chunked"],
)
def test_an_answer_that_breaks_off_is_an_error(response: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        answer_to(response, whole)


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

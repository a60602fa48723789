"""`python -m ops.bench http` and `serve` on a real server, and the client beneath them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.http.errors import Unavailable
from actors.messages import GenerateRequest, TokenEvent
from ops.bench.http_stream import Answer, BrokenAnswer, Endpoint, post
from tests.actors.http_serving import MODEL, Step, make_state, serving, source_of
from tests.ops.bench_runs import check_envelope, check_summary, run


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
        for key in ("ttft_ms", "itl_ms", "e2e_ms"):
            assert 0 <= result[key]["p50"] <= result[key]["p99"]
        assert result["ttft_ms"]["p50"] <= result["e2e_ms"]["p50"]
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


@pytest.mark.parametrize(
    ("held", "levels", "requests", "sent"),
    [("concurrency", [1, 3], 2, (1 * 2, 3 * 2)), ("rate", [150.0, 400.0], 9, (9, 9))],
)
def test_steady_load_is_counted_level_by_level(
    held: str,
    levels: list[float],
    requests: int,
    sent: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = make_state(counting)
    with serving(state) as client:
        status, line, err = run(
            capsys, "serve", "--url", client.base_url, f"--{held}", f"{levels[0]},{levels[1]}",
            "--requests", requests, "--prompt-tokens", 9, "--output-tokens", 21,
        )  # fmt: skip
    assert status == 0, err
    check_envelope(line)
    assert line["bench"] == "serve"
    assert line["config"][held] == levels
    assert line["config"]["requests"] == requests
    for result, level, count in zip(line["results"], levels, sent, strict=True):
        assert result[held] == level
        assert result["requests"] == count
        assert result["output_tokens"] == count * 21
        assert result["errors"] == 0
        assert result["output_tok_s"] == pytest.approx(21 * result["requests_s"], rel=1e-3)
        assert result["output_tok_s"] == pytest.approx(
            result["output_tokens"] / result["duration_s"], rel=1e-3
        )
        for key in ("ttft_ms", "itl_ms", "e2e_ms"):
            assert 0 <= result[key]["p50"] <= result[key]["p99"]
    assert "E2E" in err

    measured = [r for r in source_of(state).requests if r.params.max_tokens == 21]
    assert len(measured) == sum(sent)
    assert len({r.prompt_token_ids for r in measured}) == sum(sent)
    assert all(len(r.prompt_token_ids) == 9 for r in measured)


def test_serve_has_bursts_too(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(make_state(counting)) as client:
        status, line, _ = run(
            capsys, "serve", "--url", client.base_url, "--burst", "2", "--rounds", 2,
            "--prompt-tokens", 4, "--output-tokens", 18,
        )  # fmt: skip
    assert status == 0
    assert line["bench"] == "serve"
    assert [result["streams"] for result in line["results"]] == [2]
    assert line["results"][0]["output_tokens"] == [36, 36]


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

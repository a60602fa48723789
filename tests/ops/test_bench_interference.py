"""Gaps of streams beside a long prompt: which count as what, and a run against a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from actors.messages import GenerateRequest, TokenEvent
from ops.bench.__main__ import main
from ops.bench.burst import Arrival
from ops.bench.completions import Outcome
from ops.bench.interference import gaps_of
from tests.actors.http_serving import FakeSource, make_state, serving, tokenizer
from tests.ops.bench_runs import check_envelope, check_summary, run


def stream(began_s: float, *times_s: float) -> Outcome:
    """Tokens at these times of the clock."""
    return Outcome(began_s, tuple(Arrival(time_s - began_s, 1) for time_s in times_s), None)


def test_a_gap_is_calm_before_the_prompt_and_beside_it_if_any_part_is() -> None:
    streams = [
        # The gap of 3 s began before the other stream; that of 1 s is calm; 2 s and 4 s are not.
        stream(100.0, 101.0, 104.0, 105.0, 107.0, 111.0, 119.0),
        stream(100.0, 103.0, 103.5, 112.0),
    ]
    gaps = gaps_of(streams, stream(106.0, 110.0))
    assert sorted(gaps.calm_s) == [0.5, 1.0]
    assert sorted(gaps.beside_s) == [2.0, 4.0, 8.5]
    assert gaps.p99_ratio == pytest.approx((4 + 0.98 * 4.5) / (0.5 + 0.99 * 0.5), rel=1e-4)


@pytest.mark.parametrize(
    ("streams", "flag"),
    [
        ([stream(0.0, 1.0, 2.0, 9.0), stream(0.0, 1.0, 2.0, 8.0)], "--output-tokens"),
        ([stream(0.0, 1.0, 2.0, 9.0), stream(0.0, 4.0, 9.0)], "--calm-seconds"),
        ([stream(0.0, 1.0, 9.0)], "--calm-seconds"),  # one token before: no gap
    ],
)
def test_what_cannot_be_compared_is_refused_by_the_flag(streams: list[Outcome], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        gaps_of(streams, stream(3.0, 8.0))


class BesidePrompt(FakeSource):
    """Streams wait in their middle until a prompt of 60 has come; its token waits for theirs."""

    def __init__(self, streams: int) -> None:
        super().__init__(lambda _: [])
        self._streams = streams
        self._came = asyncio.Event()
        self._went_on = 0
        self._all_went_on = asyncio.Event()
        self._read = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        total = request.params.max_tokens
        if len(request.prompt_token_ids) == 60:
            self._came.set()
            await self._all_went_on.wait()
            self._read.set()
        for index in range(total):
            if total == 20 and index == 4:
                await self._came.wait()
            if total == 20 and index == 6:
                self._went_on += 1
                if self._went_on == self._streams:
                    self._all_went_on.set()
                await self._read.wait()
            if total == 20 and index > 6:
                await asyncio.sleep(0.02)  # the client is to see the prompt's token before the end
            event = TokenEvent(request.request_id, (300 + index,))
            yield replace(event, finish_reason="length") if index == total - 1 else event


def test_a_run_compares_gaps_before_a_prompt_with_those_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = BesidePrompt(3)
    with serving(make_state(source=source)) as client:
        status, line, err = run(
            capsys, "interference", "--url", client.base_url, "--streams", 3, "--rounds", 1,
            "--prompt-tokens", 9, "--output-tokens", 20, "--long-prompt-tokens", 60,
            "--calm-seconds", 1, "--vocab-size", tokenizer().vocab_size,
        )  # fmt: skip
    assert status == 0, err
    check_envelope(line)
    assert line["bench"] == "interference"
    assert line["config"]["long_prompt_tokens"] == 60 and line["config"]["calm_s"] == 1.0
    [result] = line["results"]
    assert result["streams"] == 3 and result["errors"] == 0
    check_summary(result["beside_ms"]["p99"], rounds=1)
    # Each stream waited in its fourth gap from its beginning until the prompt came.
    assert result["beside_ms"]["p99"]["median"] > 500 > result["calm_ms"]["p50"]["median"]
    assert result["p99_ratio"]["median"] > 1 and result["prompt_ttft_s"]["median"] > 0
    long_prompts = [r for r in source.requests if len(r.prompt_token_ids) == 60]
    assert [r.params.max_tokens for r in long_prompts] == [1]
    assert "beside the prompt" in err


def test_streams_that_end_too_soon_are_told_as_a_flag_at_fault(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(make_state(source=BesidePrompt(1))) as client:
        status = main(
            f"interference --url {client.base_url} --streams 1 --rounds 1 --prompt-tokens 9 "
            "--output-tokens 3 --long-prompt-tokens 30 --calm-seconds 0.2".split()
        )
    out, err = capsys.readouterr()
    assert status == 2 and not out
    assert "--output-tokens: a stream ended" in err

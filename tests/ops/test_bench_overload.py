"""`python -m ops.bench overload` with a small server as a process of its own."""

from __future__ import annotations

import shlex

import pytest

from ops.bench.burst import Arrival
from ops.bench.completions import Outcome, Sent
from ops.bench.http_stream import Answer
from ops.bench.overload import divided, tokens_between, ttft_ms
from tests.ops.bench_runs import check_envelope, run, stub_command

pytestmark = pytest.mark.alone


def command(*flags: object) -> str:
    return shlex.join(stub_command("--name", "{model}", *flags))


def test_ten_times_what_it_holds_is_refused_and_the_rest_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Six at once and 50 ms a token: 120 tokens a second, 24 requests of 5 tokens.
    status, line, err = run(
        capfd, "overload", "some/tiny", "--prompt-tokens", 4, "--output-tokens", 5,
        "--concurrency", "2,4,6,8", "--level-seconds", 1, "--seconds", 1.5, "--seed", 3,
        "--command", command("--token-ms", 50, "--at-most", 6),
    )  # fmt: skip
    assert status == 0, err
    check_envelope(line)
    assert (line["config"]["model"], line["config"]["factor"]) == ("tiny", 10.0)
    [result] = line["results"]
    assert [level["workers"] for level in result["levels"]][:2] == [2, 4]
    assert 40 < result["peak_tok_s"] <= 132
    assert result["rate"] == pytest.approx(10 * result["peak_tok_s"] / 5, rel=1e-3)
    assert result["sent"] == int(result["rate"] * 1.5)
    assert result["sent"] == result["accepted"] + result["refused"]
    assert result["refused"] > result["sent"] / 2
    assert result["goodput_of_peak"] == pytest.approx(
        result["goodput_tok_s"] / result["peak_tok_s"], rel=1e-3
    )
    assert 0 < result["ttft_ms"]["p50"] <= result["ttft_ms"]["p99"] <= result["ttft_ms"]["max"]
    assert result["errors"] == 0
    for when in ("before", "highest", "after"):
        assert result[f"memory_{when}"]["pss_bytes"] > 0
    since_sent = result["ttft_since_sent_ms"]
    assert 0 < since_sent["p50"] <= result["ttft_ms"]["p50"]
    assert 0 <= result["sent_late_ms"]["p50"] <= result["sent_late_ms"]["p99"] < 500
    assert 0 < result["refused_ms"]["p50"] <= result["refused_ms"]["p99"]
    assert "% of the peak" in err


def test_other_failures_than_refusals_fail_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = _tiny(capfd, "--cut", 1)
    assert status == 1
    assert "4 tokens instead of 5" in err


def _tiny(capfd: pytest.CaptureFixture[str], *flags: object) -> tuple[int, str, str]:
    from ops.bench.__main__ import main

    argv = ["overload", "tiny", "--output-tokens", "5", "--command", command(*flags)]
    status = main(argv)
    out, err = capfd.readouterr()
    return status, out, err


def test_only_tokens_of_whole_answers_within_the_window_count() -> None:
    arrivals = (Arrival(1.0, 1), Arrival(2.0, 3), Arrival(3.0, 5))
    outcomes = [Outcome(10.0, arrivals, None), Outcome(10.5, arrivals, None)]
    outcomes.append(Outcome(10.0, arrivals, "broke off"))
    assert tokens_between(outcomes, 0.0, 99.0) == 18
    assert tokens_between(outcomes, 11.5, 13.0) == 1 + 3 + 3
    assert tokens_between(outcomes, 13.0, 13.5) == 5
    times = ttft_ms([Outcome(0.0, (Arrival(s, 1),), None) for s in (0.1, 0.2, 0.3)])
    assert times["p50"] == pytest.approx(200) and times["max"] == pytest.approx(300)
    late = ttft_ms([Outcome(0.0, (Arrival(s, 1),), None) for s in (0.1, 0.3)], [0.05, 0.0])
    assert late["max"] == pytest.approx(300)
    late = ttft_ms([Outcome(0.0, (Arrival(s, 1),), None) for s in (0.1, 0.3)], [0.0, 0.25])
    assert late["max"] == pytest.approx(100)


def test_refusals_are_those_with_429() -> None:
    sent = [Sent(0.0, Answer(status, [])) for status in (200, 429, 503, 429)]
    taken, refused = divided([*sent, Sent(0.0, "no connection")])
    assert (len(taken), len(refused)) == (3, 2)

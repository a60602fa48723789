"""Streams whose answers are known: what they must say whatever happens to the actors meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tests.e2e.reference import Reference

LONGEST = 16_000  # tokens of a prompt and its answer

_TOP_K = 4  # of a seeded draw: over all ids, one in some thousand draws hangs on the order of a sum
_SAFE_MARGIN = 1e-5  # of probability; float32 moves it by a hundredth of that

Known = dict[int, tuple[int, ...]]


class Stream(threading.Thread):
    """One streaming request; collects token ids, and tells when the first has come."""

    def __init__(self, url: str, prompt: list[int], max_tokens: int, **extra: Any) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.prompt = prompt
        self.headers: dict[str, str] = {}
        self._body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **extra,
        }
        self.token_ids: list[int] = []
        self.done = False
        self.cut = False
        self.error: dict[str, Any] | None = None
        self.started = threading.Event()
        self._leaving = threading.Event()

    def run(self) -> None:
        try:
            self._read()
        except httpx.RemoteProtocolError:
            self.cut = True

    def leave(self) -> None:
        """Close the connection when the next bytes come."""
        self._leaving.set()

    def _read(self) -> None:
        url = f"{self._url}/v1/completions"
        with httpx.stream("POST", url, json=self._body, headers=self.headers, timeout=60) as r:
            rest = b""
            for part in r.iter_bytes():
                if self._leaving.is_set():
                    return
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line == b"data: [DONE]":
                        self.done = True
                    elif line.startswith(b"data: "):
                        self._take(json.loads(line[6:]))

    def _take(self, event: dict[str, Any]) -> None:
        self.error = event.get("error")
        if self.error is None:
            self.token_ids += event["choices"][0]["token_ids"]
            self.started.set()


class NumberedStream(Stream):
    """Stream number i: greedy where i is even, drawn with seed i where it is odd."""

    def __init__(self, url: str, number: int, max_tokens: int) -> None:
        extra = {"seed": number, "temperature": 1.0, "top_k": _TOP_K} if number % 2 else {}
        super().__init__(url, prompt_of(number), max_tokens, **extra)
        self.number = number


def prompt_of(number: int) -> list[int]:
    return [1] + [40 + number] * (1 + number % 5)


def start(url: str, count: int, max_tokens: int, *, only_odd: bool = False) -> list[NumberedStream]:
    """Start streams 0 to `count` and wait until each has its first token."""
    numbers = range(1, count, 2) if only_odd else range(count)
    streams = [NumberedStream(url, number, max_tokens) for number in numbers]
    for stream in streams:
        stream.start()
    for stream in streams:
        assert stream.started.wait(60.0)
    return streams


def assert_under_way(streams: Sequence[Stream]) -> None:
    """Most have tokens to come: where the machine is fast, a few end before the last has begun."""
    under_way = sum(not stream.done for stream in streams)
    assert 2 * under_way > len(streams), f"only {under_way} of {len(streams)} still run"


def assert_go_on(streams: Sequence[Stream], more_tokens: int = 40) -> None:
    """Every one gets so many further tokens, or comes to its end."""
    for stream in streams:
        goal = len(stream.token_ids) + more_tokens
        while len(stream.token_ids) < goal and stream.is_alive():
            time.sleep(0.02)  # a stream that hears nothing for a minute ends with an error
        assert stream.done or stream.is_alive(), stream.error


def finished(streams: list[NumberedStream]) -> list[NumberedStream]:
    for stream in streams:
        stream.join(180.0)
        assert stream.done, f"stream {stream.number} did not end"
    return streams


def assert_undisturbed(streams: list[NumberedStream], known: Known) -> None:
    """Every stream ends, with the tokens it would have had."""
    for stream in finished(streams):
        assert tuple(stream.token_ids) == known[stream.number], f"stream {stream.number}"


class Calm:
    """What streams of one checkpoint must answer: greedy ones as transformers, seeded as when calm.

    A draw hangs on weights, seed and position alone: what the first deployment says that is asked
    while nothing happens, all others must say too. It must be what transformers' logits say, and
    by a margin.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._drawn: Known = {}

    def known(self, url: str, count: int, max_tokens: int) -> Known:
        """Of streams 0 to `count`; asks the deployment at `url` for what is not yet known."""
        odd = range(1, count, 2)
        if any(len(self._drawn.get(number, ())) < max_tokens for number in odd):
            for stream in finished(start(url, count, max_tokens, only_odd=True)):
                self._drawn[stream.number] = tuple(stream.token_ids)
                margin = self._reference.margin(
                    stream.prompt, stream.token_ids, stream.number, _TOP_K
                )
                assert margin > _SAFE_MARGIN, f"stream {stream.number}: {margin}"
        known = {number: self._drawn[number][:max_tokens] for number in odd}
        for number in range(0, count, 2):
            prompt = tuple(prompt_of(number))
            known[number] = self._reference.greedy(prompt, max_tokens).token_ids
        return known


def experts_of(url: str) -> dict[str, Any]:
    """GET /v1/experts."""
    answer = httpx.get(f"{url}/v1/experts", timeout=10.0)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def ranks_of(url: str, expected: list[int]) -> list[dict[str, Any]]:
    """The attention and expert actors, once every expected rank has one that serves."""
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        body = experts_of(url)
        ranks = [one for one in body["actors"] if one["role"] in ("attention", "expert")]
        whole = not any(one["replacing"] for one in body["pipelines"])
        if whole and [one["rank"] for one in ranks] == expected:
            return ranks
        time.sleep(0.1)  # nothing to wait on from outside
    raise TimeoutError(f"ranks {expected} are not all there")

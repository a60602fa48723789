"""One streamed /v1/completions: what is sent to which server, and what came back when.

Servers that send the ids of their tokens have them counted event by event. Others say the total
in `usage`, and their events with text say when; the tokens are spread over them evenly.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

from ops.bench.burst import Arrival
from ops.bench.http_stream import Answer, BrokenAnswer, Endpoint, post
from ops.bench.workload import as_text

TIMEOUT_S = 600.0  # of one request
_MAX_REASON_CHARS = 300

Prompt = tuple[int, ...] | str

OWN_FIELDS: Mapping[str, Any] = {"ignore_eos": True, "return_token_ids": True}


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how it wants to be asked.

    `fields` are sent beside OpenAI's and win over them. `needs_done` False: a finish reason ends
    a stream as well as [DONE] does.
    """

    endpoint: Endpoint
    model: str | None
    fields: Mapping[str, Any] = field(default_factory=lambda: OWN_FIELDS)
    prompt_text: bool = False
    needs_done: bool = True

    def body(self, prompt: Prompt, output_tokens: int) -> bytes:
        """The request for so many greedy tokens after a prompt."""
        if self.prompt_text and not isinstance(prompt, str):
            prompt = as_text(prompt)
        request: dict[str, Any] = {} if self.model is None else {"model": self.model}
        request |= {
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }
        return json.dumps(request).encode()


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that has ended: when it began (perf_counter), its answer or why there is none."""

    began_s: float
    answer: Answer | str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; arrivals are counted from `began_s`, a perf_counter() time."""

    began_s: float
    arrivals: tuple[Arrival, ...]
    error: str | None
    prompt_tokens: int | None = None  # as the server counts them

    @property
    def num_tokens(self) -> int:
        """Output tokens that came, of a request that failed too."""
        return sum(arrival.num_tokens for arrival in self.arrivals)


async def send(target: Target, body: bytes, began_s: float | None = None) -> Sent:
    """POST and read to the end. `began_s` where the request was due before this call."""
    began_s = perf_counter() if began_s is None else began_s
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return Sent(began_s, await post(target.endpoint, body))
    except TimeoutError:
        return Sent(began_s, f"no end after {TIMEOUT_S:g} s")
    except (OSError, BrokenAnswer) as error:
        return Sent(began_s, str(error))


def outcome(target: Target, sent: Sent, output_tokens: int) -> Outcome:
    """Take an answer apart: an error unless exactly as many tokens came as were asked for."""
    if isinstance(sent.answer, str):
        return Outcome(sent.began_s, (), sent.answer)
    if sent.answer.status != 200:
        reason = " ".join(sent.answer.text().split())[:_MAX_REASON_CHARS]
        return Outcome(sent.began_s, (), f"status {sent.answer.status}: {reason}")
    stream = _Stream()
    error = None
    for time_s, data in sent.answer.events():
        if data == "[DONE]":
            stream.done = True
            continue
        try:
            stream.take(time_s - sent.began_s, json.loads(data))
        except (ValueError, LookupError, TypeError, AttributeError):
            error = f"not an event of a completion: {data[:_MAX_REASON_CHARS]}"
            break
    arrivals = stream.arrivals()
    received = sum(arrival.num_tokens for arrival in arrivals)
    if error is None and not stream.done and (target.needs_done or stream.finish_s is None):
        error = "the stream ended without [DONE]"
    if error is None and not received and not stream.usage:
        error = "neither ids of tokens nor a usage came"
    if error is None and received != output_tokens:
        error = f"{received} tokens instead of {output_tokens}"
    return Outcome(sent.began_s, arrivals, error, stream.usage.get("prompt_tokens"))


class _Stream:
    """What the events of one stream say."""

    def __init__(self) -> None:
        self.done = False
        self.finish_s: float | None = None
        self.usage: dict[str, int] = {}
        self._by_ids: list[Arrival] = []
        self._text_s: list[float] = []

    def take(self, time_s: float, event: Any) -> None:
        """KeyError of an error event; a usage event has no choice."""
        for choice in event["choices"]:
            if num_tokens := len(choice.get("token_ids") or ()):
                self._by_ids.append(Arrival(time_s, num_tokens))
            if choice.get("text"):
                self._text_s.append(time_s)
            if choice.get("finish_reason") is not None:
                self.finish_s = time_s
        self.usage = event.get("usage") or self.usage

    def arrivals(self) -> tuple[Arrival, ...]:
        if self._by_ids:
            return tuple(self._by_ids)
        total = int(self.usage.get("completion_tokens", 0))
        # Tokens may print nothing; at the latest the last one was known at the finish.
        times_s = self._text_s or ([] if self.finish_s is None else [self.finish_s])
        return spread(total, times_s)


def spread(total: int, times_s: Sequence[float]) -> tuple[Arrival, ...]:
    """`total` tokens over the times, as evenly as whole numbers go; times without one left out."""
    count = len(times_s)
    upto = [total * index // count for index in range(count + 1)] if count else []
    shares = [after - before for before, after in pairwise(upto)]
    return tuple(Arrival(t, n) for t, n in zip(times_s, shares, strict=True) if n)

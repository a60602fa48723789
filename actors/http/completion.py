"""From token events to what clients see: text, whole characters only, cut at stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter, time
from typing import Literal

from actors.http.completion_plan import Choice, CompletionPlan
from actors.http.doors import ANYBODY
from actors.http.errors import DeadlineExceeded, InternalError, Unavailable
from actors.http.request_metrics import RequestMetrics
from actors.http.request_record import RequestRecord, SequenceRecord
from actors.http.serving_state import ServingState
from actors.http.waiting_line import Place
from actors.messages import FinishReason, TokenEvent
from model.detokenizer import IncrementalDetokenizer
from model.sampling_params import TokenLogprobs
from model.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to one choice.

    `text` may be behind `token_ids`: half a character, or what may become a stop string, is held
    back. The last delta of a choice, and only it, has a finish reason. `num_cached_tokens` counts
    in a choice's first delta only: a later one may be of another attempt, after an actor's death.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]  # one per token id, or empty
    finish_reason: Literal["stop", "length"] | None
    num_cached_tokens: int = 0  # of the prompt


async def deltas(
    plan: CompletionPlan, state: ServingState, record: RequestRecord
) -> AsyncGenerator[Delta, None]:
    """All choices' deltas as they come, noted in `record`; closing it aborts what still runs.

    Raises an ApiError: of the admission, of the source, or DeadlineExceeded, which aborts too.
    """
    caller, arrived_s = record.caller or ANYBODY, record.arrived_s
    record.prompt_tokens = plan.prompt_tokens
    prompts = [len(choice.request.prompt_token_ids) for choice in plan.choices]
    with state.admitted(prompts) as places:
        state.rates.take_prompt(caller, plan.prompt_tokens, perf_counter())
        streams = [
            _choice_deltas(plan, choice, state, record, place)
            for choice, place in zip(plan.choices, places, strict=True)
        ]
        merged = streams[0] if len(streams) == 1 else _merge(streams)
        async with aclosing(until_deadline(merged, state.request_timeout_s, arrived_s)) as timed:
            async for delta in timed:
                state.rates.generated(caller, len(delta.token_ids), perf_counter())
                yield delta


async def until_deadline(
    deltas: AsyncGenerator[Delta, None], timeout_s: float | None, arrived_s: float
) -> AsyncGenerator[Delta, None]:
    """What comes until `timeout_s` behind `arrived_s`, of perf_counter; closes `deltas`.

    Raises:
        DeadlineExceeded: there was still something to come.
    """
    waiting: asyncio.Task[object] | None = None
    over = False

    def end() -> None:
        nonlocal over
        over = True
        if waiting is not None:
            waiting.cancel()

    timer = None
    if timeout_s is not None:
        left_s = arrived_s + timeout_s - perf_counter()
        timer = asyncio.get_running_loop().call_later(left_s, end)
    try:
        async with aclosing(deltas):
            while not over:
                # One timer for all: asyncio.timeout around each takes 7 microseconds more.
                waiting = asyncio.current_task()
                assert waiting is not None
                others = waiting.cancelling()
                try:
                    delta = await anext(deltas)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    if not over or waiting.uncancel() > others:
                        raise
                    break
                finally:
                    waiting = None
                yield delta
    finally:
        if timer is not None:
            timer.cancel()
    raise DeadlineExceeded(
        f"the answer was not complete within {timeout_s:g} s (--request-timeout)"
    )


async def _choice_deltas(
    plan: CompletionPlan, choice: Choice, state: ServingState, record: RequestRecord, place: Place
) -> AsyncGenerator[Delta, None]:
    text = _ChoiceText(plan, choice, state)
    request = choice.request
    told = SequenceRecord(len(request.prompt_token_ids), request.arrival_s, choice.counts_prompt)
    record.sequences.append(told)
    clock = _Clock(state.metrics, record.arrived_s, told)
    state.metrics.accepted(len(choice.request.prompt_token_ids))
    async with aclosing(state.source.generate(choice.request)) as events:
        try:
            async for event in events:
                place.served(perf_counter())
                clock.tick(event)
                for delta in text.deltas(event):
                    if state.log_prompts:
                        told.answer.append(delta.text)
                    if delta.finish_reason is not None:
                        clock.finish(delta.finish_reason)
                    yield delta
                    if delta.finish_reason is not None:
                        return
        except (asyncio.CancelledError, GeneratorExit):
            clock.finish("abort")
            raise
    raise InternalError("the token source ended without a finish reason")


class _ChoiceText:
    """One choice's events to deltas."""

    def __init__(self, plan: CompletionPlan, choice: Choice, state: ServingState) -> None:
        self._index = choice.index
        self._lead = choice.echo
        self._include_stop = plan.include_stop
        self._detokenizer = IncrementalDetokenizer(
            state.tokenizer, keep_leading_space=plan.continues_prompt
        )
        self._stops = StopStrings(plan.stop, include_stop=plan.include_stop) if plan.stop else None

    def deltas(self, event: TokenEvent) -> Iterator[Delta]:
        """One delta; with stop strings one per token, so that the cut is behind the right one."""
        if event.finish_reason == "abort":
            raise Unavailable("the request was aborted by the server before it was complete")
        if self._stops is None:
            yield self._delta(event.token_ids, event.logprobs or (), event, True)
            return
        last = len(event.token_ids) - 1
        if last < 0:
            yield self._delta((), (), event, True)
        for i, token_id in enumerate(event.token_ids):
            logprobs = event.logprobs[i : i + 1] if event.logprobs else ()
            delta = self._delta((token_id,), logprobs, event, i == last)
            yield delta
            if delta.finish_reason is not None:
                return

    def _delta(
        self,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...],
        event: TokenEvent,
        whole: bool,
    ) -> Delta:
        """`whole`: these are the event's last tokens, so its finish reason holds behind them."""
        reason = event.finish_reason if whole else None
        shown = token_ids
        if reason == "stop" and not self._include_stop:  # by EOS too, which may be a piece of text
            shown = token_ids[:-1]
        text = self._detokenizer.push(shown)
        if reason is not None:
            text += self._detokenizer.finish()
        hit = False
        if self._stops is not None:
            text, hit = self._stops.push(text)
            if reason is not None and not hit:
                text += self._stops.finish()
        text, self._lead = self._lead + text, ""
        assert reason != "abort", "refused in deltas()"
        return Delta(
            self._index,
            text,
            token_ids,
            logprobs,
            "stop" if hit else reason,
            event.num_cached_tokens,
        )


class _Clock:
    """Measures one choice as its client sees it."""

    def __init__(self, metrics: RequestMetrics, arrived_s: float, told: SequenceRecord) -> None:
        self._metrics = metrics
        self._told = told
        self._arrived_s = arrived_s
        self._last_s: float | None = None
        self._finished = False

    def tick(self, event: TokenEvent) -> None:
        """An event came."""
        self._told.note(event, time())
        num_tokens = len(event.token_ids)
        if num_tokens == 0:
            return
        now_s = perf_counter()
        if self._last_s is None:
            self._metrics.first_tokens(num_tokens, now_s - self._arrived_s)
        else:
            self._metrics.more_tokens(num_tokens, now_s - self._last_s)
        self._last_s = now_s

    def finish(self, reason: FinishReason) -> None:
        """The choice ended; only the first end counts, what comes later is its clearing up."""
        if not self._finished:
            self._finished = True
            self._told.finish_reason = reason
            self._metrics.finished(reason, perf_counter() - self._arrived_s)


async def _merge(streams: list[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """Deltas of all streams as they come. The first error ends all."""
    ready: asyncio.Queue[Delta | asyncio.Task[None]] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[Delta, None]) -> None:
        async with aclosing(stream):
            async for delta in stream:
                ready.put_nowait(delta)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    for task in tasks:
        task.add_done_callback(ready.put_nowait)  # behind the stream's last delta
    try:
        running = len(tasks)
        while running:
            item = await ready.get()
            if isinstance(item, Delta):
                yield item
            else:
                item.result()
                running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""From a validated body to the sequences to pool, and their vectors as they come back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter

from actors.http.completion_plan import all_ids, check_ids, check_model
from actors.http.doors import ANYBODY
from actors.http.errors import BadRequest, DeadlineExceeded, InternalError, Unavailable
from actors.http.pooling_schema import PoolingFields
from actors.http.request_record import RequestRecord, SequenceRecord
from actors.http.serving_state import ServingState
from actors.http.waiting_line import Place
from actors.messages import FinishReason, GenerateRequest
from model.head import Pooling
from model.sampling_params import SamplingParams

_NO_TOKENS = SamplingParams(max_tokens=0, seed=0)


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """Everything to be done for one HTTP request: a sequence for each input, in order."""

    requests: tuple[GenerateRequest, ...]

    @property
    def prompt_tokens(self) -> int:
        """Of all inputs."""
        return sum(len(request.prompt_token_ids) for request in self.requests)


async def plan_pooling(body: PoolingFields, state: ServingState, pooling: Pooling) -> PoolingPlan:
    """Raises BadRequest or NotFound naming the field that cannot be served."""
    check_model(body.model, state)
    arrival_s = time.time()
    requests = []
    special = body.add_special_tokens
    add_eos = special and state.add_eos
    given = await all_ids(body.input, state, add_bos=special, add_eos=add_eos)
    for number, ids in enumerate(given):
        check_ids(ids, "input", state)
        if not 0 < len(ids) <= state.max_model_len:
            raise BadRequest(
                f"input {number} has {len(ids)} tokens; it takes from 1 to the"
                f" {state.max_model_len} of the context",
                param="input",
                code="context_length_exceeded" if ids else None,
            )
        requests.append(
            GenerateRequest(
                uuid.uuid4().hex,
                state.ingress_id,
                _without_padding(ids, state.head.pad_token_id),
                _NO_TOKENS,
                arrival_s=arrival_s,
                priority=body.priority,
                pooling=pooling,
            )
        )
    return PoolingPlan(tuple(requests))


def _without_padding(ids: tuple[int, ...], pad: int | None) -> tuple[int, ...]:
    """A classifier reads the last token that is no padding, and none of them sees what follows."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


async def vectors(plan: PoolingPlan, state: ServingState, record: RequestRecord) -> list[bytes]:
    """One for each input, in their order: float32, little-endian. Cancelling it aborts them all.

    What becomes of them is noted in `record`. Raises an ApiError: of the admission, of the source,
    or DeadlineExceeded.
    """
    caller, arrived_s = record.caller or ANYBODY, record.arrived_s
    record.prompt_tokens = plan.prompt_tokens
    lengths = [len(request.prompt_token_ids) for request in plan.requests]
    with state.admitted(lengths) as places:
        state.rates.take_prompt(caller, plan.prompt_tokens, perf_counter())
        timeout_s, loop = state.request_timeout_s, asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + arrived_s + timeout_s
        if deadline_s is not None:
            deadline_s -= perf_counter()
        try:
            async with asyncio.timeout_at(deadline_s) as limit:
                return await _all(plan.requests, places, state, record)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"the answer was not complete within {timeout_s:g} s (--request-timeout)"
            ) from error


async def _all(
    requests: Sequence[GenerateRequest],
    places: Sequence[Place],
    state: ServingState,
    record: RequestRecord,
) -> list[bytes]:
    """All at once; the first error ends the others."""
    tasks = [
        asyncio.create_task(_one(request, place, state, record))
        for request, place in zip(requests, places, strict=True)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(
    request: GenerateRequest, place: Place, state: ServingState, record: RequestRecord
) -> bytes:
    told = SequenceRecord(len(request.prompt_token_ids), request.arrival_s)
    record.sequences.append(told)
    state.metrics.accepted(len(request.prompt_token_ids))

    def finished(reason: FinishReason) -> None:
        told.finish_reason = reason
        state.metrics.finished(reason, perf_counter() - record.arrived_s)

    try:
        async with aclosing(state.source.generate(request)) as events:
            async for event in events:
                place.served(perf_counter())
                told.note(event, time.time())
                if event.finish_reason == "abort":
                    raise Unavailable(
                        "the request was aborted by the server before it was complete"
                    )
                if event.finish_reason is not None:
                    finished("stop")
                    return event.vector
    except asyncio.CancelledError:
        finished("abort")
        raise
    raise InternalError("the token source ended without a finish reason")

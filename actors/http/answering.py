"""What every endpoint that runs the model does around it: limits, the body, errors, headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from actors.http.doors import ANYBODY
from actors.http.errors import ApiError, BadRequest
from actors.http.openai_schema import parse_request
from actors.http.request_log import record_of
from actors.http.request_record import RequestRecord
from actors.http.serving_state import ServingState
from actors.http.transport import (
    CLIENT_GONE_STATUS,
    EventStream,
    as_api_error,
    error_response,
    read_body,
)
from model.head import Task

_WHAT_WAS_ASKED = {"messages", "prompt", "input"}  # fields of a body

Asked = TypeVar("Asked", bound=BaseModel)
Respond = Callable[[Asked, ServingState, RequestRecord], Awaitable[Response]]


async def answer(
    request: Request, schema: type[Asked], task: Task, respond: Respond[Asked]
) -> Response:
    """Let a request for `task` in, parse its body and `respond` to it; errors become answers."""
    state, record = state_of(request), record_of(request)
    try:
        state.rates.take_request(record.caller or ANYBODY, record.arrived_s)
        refuse_other_tasks(request.url.path, task, state)
        state.refuse_if_full()  # before reading, parsing and tokenizing, which all cost time
        content = await read_body(request, state.max_request_bytes, state.body_timeout_s)
        body = parse_request(content, schema)
        if state.log_prompts:
            record.prompt = body.model_dump(include=_WHAT_WAS_ASKED)
        response = await respond(body, state, record)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE_STATUS)
    except Exception as error:
        shown = as_api_error(error)
        refused(request, shown)
        response = error_response(shown)
    if not isinstance(response, EventStream):  # which says it when it begins
        response.headers.update(allowance(request))
    return response


def refused(request: Request, error: ApiError) -> None:
    """Note and count a request's end in an error."""
    record_of(request).error = error
    state_of(request).metrics.refused(error.status)


def allowance(request: Request) -> dict[str, str]:
    """Headers that say what is left to the caller."""
    caller = record_of(request).caller or ANYBODY
    return state_of(request).rates.headers(caller, perf_counter())


def refuse_other_tasks(asked: str, task: Task, state: ServingState) -> None:
    """Raises BadRequest, which says what the model is, where it is not for `task`."""
    if state.head.task != task:
        raise BadRequest(
            f"{asked} is not for this model: {state.model_name} is {state.head.what_it_does}",
            param="model",
            code="unsupported_model",
        )


def state_of(request: Request) -> ServingState:
    """What the server's routes share."""
    state: ServingState = request.app.state.serving
    return state

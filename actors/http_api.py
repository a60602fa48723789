"""The routes: OpenAI's completion endpoints, those of pooling, and what operating them needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from time import perf_counter
from typing import Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response

from actors.admin_api import add_admin_routes
from actors.completion import deltas
from actors.completion_plan import CompletionPlan, plan_chat, plan_completion
from actors.errors import ApiError, BadRequest, MethodNotAllowed, NotFound, Unavailable
from actors.http_transport import (
    CLIENT_GONE_STATUS,
    EventStream,
    RequestIdHeader,
    as_api_error,
    error_response,
    read_body,
    unless_disconnected,
)
from actors.openai_response import Answer, ChatAnswer, CompletionAnswer
from actors.openai_schema import ChatRequest, CompletionRequest, Schema, parse_request
from actors.openapi_document import complete
from actors.pooling_api import classify, embeddings, refuse_other_tasks
from actors.pooling_schema import ClassifyRequest, EmbeddingRequest
from actors.serving_state import ServingState

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BODY_SCHEMAS = "#/components/schemas/{model}"


class HttpApi(FastAPI):
    """FastAPI, with the two request bodies in the schema of /docs: routes parse them themselves."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        _, schemas = models_json_schema(
            [(schema, "validation") for _, _, schema in _ENDPOINTS],
            ref_template=BODY_SCHEMAS,
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        return complete(document)


def create_api(state: ServingState, *, request_id_header: bool = True) -> FastAPI:
    """The app that serves `state`, which its routes find at `app.state.serving`.

    `request_id_header=False` where the server around it sets X-Request-Id, as Ray Serve does.
    """
    app = HttpApi(title="Windrose", version=state.version, redirect_slashes=False)
    app.state.serving = state
    guarded = [Depends(need_api_key)]
    for path, endpoint, schema in _ENDPOINTS:
        body = {"schema": {"$ref": BODY_SCHEMAS.format(model=schema.__name__)}}
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            dependencies=guarded,
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": body}}
            },
        )
    app.add_api_route("/v1/models", list_models, dependencies=guarded)
    app.add_api_route("/v1/models/{model_id:path}", retrieve_model, dependencies=guarded)
    app.add_api_route("/v1/experts", experts, dependencies=guarded)
    add_admin_routes(app)
    app.add_api_route("/health", health)
    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/version", version)
    app.add_api_route("/metrics", metrics)
    app.add_api_route("/", root)
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(Exception, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    if state.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=state.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    if request_id_header:
        app.add_middleware(RequestIdHeader)
    return app


async def need_api_key(request: Request) -> None:
    """Of /classify and all below /v1 but what changes placement. Raises Unauthorized."""
    caller = _state(request).doors.let_in(request.headers.get("authorization"))
    request.state.caller = caller


async def chat_completions(request: Request) -> Response:
    """Answers a conversation, as OpenAI's chat completions."""
    return await _complete(request, ChatRequest, plan_chat, ChatAnswer)


async def completions(request: Request) -> Response:
    """Goes on from a prompt, as OpenAI's (legacy) completions."""
    return await _complete(request, CompletionRequest, plan_completion, CompletionAnswer)


_ENDPOINTS: tuple[tuple[str, Callable[[Request], Awaitable[Response]], type[BaseModel]], ...] = (
    ("/v1/chat/completions", chat_completions, ChatRequest),
    ("/v1/completions", completions, CompletionRequest),
    ("/v1/embeddings", embeddings, EmbeddingRequest),
    ("/classify", classify, ClassifyRequest),
)


async def _complete(
    request: Request,
    schema: type[Schema],
    make_plan: Callable[[Schema, ServingState], Awaitable[CompletionPlan]],
    answer_type: type[Answer],
) -> Response:
    arrived_s = perf_counter()
    state = _state(request)

    def refused(error: ApiError) -> None:
        state.metrics.refused(error.status)

    try:
        caller: str = request.state.caller
        state.rates.take_request(caller, arrived_s)
        refuse_other_tasks(request.url.path, "generate", state)
        state.refuse_if_full()  # before reading, parsing and tokenizing, which all cost time
        content = await read_body(request, state.max_request_bytes, state.body_timeout_s)
        body = parse_request(content, schema)
        plan = await make_plan(body, state)
        answer = answer_type(plan, state.tokenizer)
        if body.stream:
            return EventStream(answer.stream(deltas(plan, state, arrived_s, caller)), refused)
        whole = answer.whole(deltas(plan, state, arrived_s, caller))
        whole_json = await unless_disconnected(request.receive, whole)
        return Response(whole_json, media_type="application/json")
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE_STATUS)
    except Exception as error:
        shown = as_api_error(error)
        refused(shown)
        return error_response(shown)


async def list_models(request: Request) -> Response:
    """The one model this server has."""
    return JSONResponse({"object": "list", "data": [_model_card(_state(request))]})


async def retrieve_model(request: Request, model_id: str) -> Response:
    """One model by its name."""
    state = _state(request)
    if model_id != state.model_name:
        raise NotFound(
            f"the model {model_id!r} does not exist", param="model", code="model_not_found"
        )
    return JSONResponse(_model_card(state))


async def experts(request: Request) -> Response:
    """Which rank serves which expert, and how loaded each expert is."""
    return JSONResponse(await _state(request).source.experts())


async def health(request: Request) -> Response:
    """200 when requests can be served; 503 before, and while shutting down.

    With `min_replicas` 0 it is 200 without any pipeline too: the next request starts one.
    """
    state = _state(request)
    if state.draining:
        raise Unavailable("the server is shutting down")
    if not state.source.ready():
        raise Unavailable("the server is not ready yet")
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    """Of Windrose."""
    return JSONResponse({"version": _state(request).version})


async def metrics(request: Request) -> Response:
    """Prometheus text of the whole deployment, whichever of its ingresses is asked."""
    text = await _state(request).source.metrics()
    return PlainTextResponse(text, media_type=METRICS_TYPE)


async def root(request: Request) -> Response:
    """Where to go from here."""
    state = _state(request)
    return JSONResponse(
        {"name": "windrose", "version": state.version, "model": state.model_name, "docs": "/docs"}
    )


def _state(request: Request) -> ServingState:
    state: ServingState = request.app.state.serving
    return state


def _model_card(state: ServingState) -> dict[str, object]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.started_s,
        "owned_by": "windrose",
        "max_model_len": state.max_model_len,
    }


async def _on_error(_request: Request, error: Exception) -> Response:
    return error_response(as_api_error(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What FastAPI's router refuses by itself: paths and methods."""
    assert isinstance(error, HTTPException), "registered for HTTPException"
    where = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        shown: ApiError = NotFound(f"there is no {request.url.path} here", code="not_found")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        shown = MethodNotAllowed(f"{where} is not allowed")
    else:
        shown = BadRequest(f"{where}: {error.detail}")
    response = error_response(shown)
    response.headers.update(error.headers or {})
    return response

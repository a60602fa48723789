"""The routes: OpenAI's completion endpoints, those of pooling, and what operating them needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from actors.http.admin_api import add_admin_routes
from actors.http.answering import allowance, answer, refused, state_of
from actors.http.completion import deltas
from actors.http.completion_plan import CompletionPlan, plan_chat, plan_completion
from actors.http.errors import ApiError, BadRequest, MethodNotAllowed, NotFound, Unavailable
from actors.http.openai_response import Answer, ChatAnswer, CompletionAnswer
from actors.http.openai_schema import ChatRequest, CompletionRequest, Schema
from actors.http.openapi_document import complete
from actors.http.pooling_api import classify, embeddings
from actors.http.pooling_schema import ClassifyRequest, EmbeddingRequest
from actors.http.rate_limits import LIMIT_HEADERS
from actors.http.request_ids import REQUEST_ID_HEADER, RequestIds
from actors.http.request_log import RequestRecords, record_of
from actors.http.request_record import RequestRecord
from actors.http.serving_state import ServingState
from actors.http.transport import (
    EventStream,
    as_api_error,
    error_response,
    unless_disconnected,
)

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

    def build_middleware_stack(self) -> ASGIApp:
        """Ours goes around all of Starlette's, whose own answers to failures are to be seen too."""
        records = RequestRecords(super().build_middleware_stack(), on_end=self.state.serving.on_end)
        return RequestIds(records, answers=self.state.answers_with_id)


def create_api(state: ServingState, *, request_id_header: bool = True) -> FastAPI:
    """The app that serves `state`, which its routes find at `app.state.serving`.

    `request_id_header=False` where the server around it sets X-Request-Id, as Ray Serve does.
    """
    app = HttpApi(title="Windrose", version=state.version, redirect_slashes=False)
    app.state.serving = state
    app.state.answers_with_id = request_id_header
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
            expose_headers=[REQUEST_ID_HEADER, "retry-after", *LIMIT_HEADERS],
        )
    return app


async def need_api_key(request: Request) -> None:
    """Of /classify and all below /v1 but what changes placement. Raises Unauthorized."""
    caller = state_of(request).doors.let_in(request.headers.get("authorization"))
    record_of(request).caller = caller


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
    make_plan: Callable[[Schema, ServingState, str], Awaitable[CompletionPlan]],
    answer_type: type[Answer],
) -> Response:
    async def respond(body: Schema, state: ServingState, record: RequestRecord) -> Response:
        plan = await make_plan(body, state, record.request_id)
        made = answer_type(plan, state.tokenizer)
        if body.stream:
            return EventStream(
                made.stream(deltas(plan, state, record)),
                lambda error: refused(request, error),
                lambda: allowance(request),
            )
        whole = made.whole(deltas(plan, state, record))
        whole_json = await unless_disconnected(request.receive, whole)
        return Response(whole_json, media_type="application/json")

    return await answer(request, schema, "generate", respond)


async def list_models(request: Request) -> Response:
    """The one model this server has."""
    return JSONResponse({"object": "list", "data": [_model_card(state_of(request))]})


async def retrieve_model(request: Request, model_id: str) -> Response:
    """One model by its name."""
    state = state_of(request)
    if model_id != state.model_name:
        raise NotFound(
            f"the model {model_id!r} does not exist", param="model", code="model_not_found"
        )
    return JSONResponse(_model_card(state))


async def experts(request: Request) -> Response:
    """Which rank serves which expert, and how loaded each expert is."""
    return JSONResponse(await state_of(request).source.experts())


async def health(request: Request) -> Response:
    """200 when requests can be served; 503 before, and while shutting down.

    With `min_replicas` 0 it is 200 without any pipeline too: the next request starts one.
    """
    state = state_of(request)
    if state.draining:
        raise Unavailable("the server is shutting down")
    if not state.source.ready():
        raise Unavailable("the server is not ready yet")
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    """Of Windrose."""
    return JSONResponse({"version": state_of(request).version})


async def metrics(request: Request) -> Response:
    """Prometheus text of the whole deployment, whichever of its ingresses is asked."""
    text = await state_of(request).source.metrics()
    return PlainTextResponse(text, media_type=METRICS_TYPE)


async def root(request: Request) -> Response:
    """Where to go from here."""
    state = state_of(request)
    return JSONResponse(
        {"name": "windrose", "version": state.version, "model": state.model_name, "docs": "/docs"}
    )


def _model_card(state: ServingState) -> dict[str, object]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.started_s,
        "owned_by": "windrose",
        "max_model_len": state.max_model_len,
    }


def _refused(request: Request, error: ApiError) -> None:
    """Note a request's end in an error; that a probe is told to wait is none to count."""
    if request.scope.get("endpoint") is health:
        record_of(request).error = error
    else:
        refused(request, error)


async def _on_error(request: Request, error: Exception) -> Response:
    shown = as_api_error(error)
    _refused(request, shown)
    return error_response(shown)


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
    _refused(request, shown)
    response = error_response(shown)
    response.headers.update(error.headers or {})
    return response

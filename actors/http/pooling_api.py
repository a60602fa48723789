"""The endpoints of models that draw no tokens: embeddings as OpenAI's, classes as vLLM's."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from actors.http.answering import answer, state_of
from actors.http.openai_response import to_json
from actors.http.pooling_plan import PoolingPlan, plan_pooling, vectors
from actors.http.pooling_schema import ClassifyRequest, EmbeddingRequest, PoolingFields
from actors.http.request_record import RequestRecord
from actors.http.serving_state import ServingState
from actors.http.transport import unless_disconnected
from model.head import Pooling, Task

_LONG_ANSWER_BYTES = 256 * 1024  # of vectors; writing more out is not left to the event loop

Data = list[dict[str, Any]]
Asked = TypeVar("Asked", bound=PoolingFields)


async def embeddings(request: Request) -> Response:
    """A vector of length 1 for each text, as OpenAI's embeddings."""

    def data(body: EmbeddingRequest, found: Sequence[bytes], _state: ServingState) -> Data:
        spell = _base64 if body.encoding_format == "base64" else _floats
        return [
            {"object": "embedding", "index": index, "embedding": spell(vector)}
            for index, vector in enumerate(found)
        ]

    pooling = state_of(request).pooling
    return await _pool(request, EmbeddingRequest, "embed", "embd-", pooling, data)


async def classify(request: Request) -> Response:
    """The likeliest label of each text, and the probability of every one, as vLLM's classify."""

    def data(_body: ClassifyRequest, found: Sequence[bytes], state: ServingState) -> Data:
        return [_class(index, _floats(probs), state) for index, probs in enumerate(found)]

    return await _pool(request, ClassifyRequest, "classify", "classify-", "last", data)


def _class(index: int, probs: list[float], state: ServingState) -> dict[str, Any]:
    label = state.head.labels[probs.index(max(probs))]
    return {"index": index, "label": label, "probs": probs, "num_classes": len(probs)}


def _floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


async def _pool(
    request: Request,
    schema: type[Asked],
    task: Task,
    prefix: str,
    pooling: Pooling,
    data: Callable[[Asked, Sequence[bytes], ServingState], Data],
) -> Response:
    async def respond(body: Asked, state: ServingState, record: RequestRecord) -> Response:
        plan = await plan_pooling(body, state, pooling)
        found = await unless_disconnected(request.receive, vectors(plan, state, record))

        def written() -> bytes:
            return _written(prefix, plan, data(body, found, state), state)

        long = sum(map(len, found)) > _LONG_ANSWER_BYTES
        whole = await asyncio.to_thread(written) if long else written()
        return Response(whole, media_type="application/json")

    return await answer(request, schema, task, respond)


def _written(prefix: str, plan: PoolingPlan, data: Data, state: ServingState) -> bytes:
    usage = {
        "prompt_tokens": plan.prompt_tokens,
        "total_tokens": plan.prompt_tokens,
        "completion_tokens": 0,
    }
    whole = {
        "id": prefix + uuid.uuid4().hex,
        "object": "list",
        "created": int(time.time()),
        "model": state.model_name,
        "data": data,
        "usage": usage,
    }
    return to_json(whole).encode()

"""What the OpenAPI document says beyond what FastAPI knows of the routes: answers, errors, keys.

Routes read their bodies and write their answers themselves, so FastAPI knows neither, and lists a
422 that no route gives.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

Json = dict[str, Any]

_NULLABLE_TEXT: Json = {"anyOf": [{"type": "string"}, {"type": "null"}]}
ERROR_SCHEMA: Json = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE_TEXT,
                "code": _NULLABLE_TEXT,
            },
        }
    },
}

_ERRORS: dict[int, str] = {
    400: "A field is wrong, unknown or not supported: `param` names it",
    401: "The API key is missing or wrong",
    403: "Placement may be changed with the admin key only",
    404: "There is no such model",
    408: "The body was not there in time",
    409: "Not now, say because of another change: try again later",
    413: "The body is too large",
    429: "Too much waits, or this key has had its share: see Retry-After",
    500: "The server's own fault",
    503: "Nothing can serve this now, or the server shuts down",
    504: "The answer was not complete in time",
}
_COMPLETION = (400, 401, 404, 408, 413, 429, 500, 503, 504)
_CHANGE = (400, 401, 403, 408, 409, 413, 500, 503)


def _object(*required: str) -> Json:
    return {"type": "object", "required": list(required)}


def _answer(kind: str) -> Json:
    """Of a completion; streamed as events where the request says so."""
    whole = _object("id", "object", "created", "model", "choices", "usage")
    whole["properties"] = {
        "object": {"const": kind},
        "choices": {"type": "array", "minItems": 1, "items": _object("index", "finish_reason")},
        "usage": _object("prompt_tokens", "completion_tokens", "total_tokens"),
    }
    return {
        "application/json": {"schema": whole},
        "text/event-stream": {"schema": {}},
    }


def _pooled(item: Json) -> Json:
    """Of what was pooled: an item for each input."""
    whole = _object("id", "object", "created", "model", "data", "usage")
    whole["properties"] = {
        "object": {"const": "list"},
        "data": {"type": "array", "minItems": 1, "items": item},
        "usage": _object("prompt_tokens", "total_tokens"),
    }
    return _json(whole)


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


_MODEL = _object("id", "object", "created", "owned_by", "max_model_len")
_NUMBERS: Json = {"type": "array", "minItems": 1, "items": {"type": "number"}}
_EMBEDDING = _object("object", "index", "embedding") | {
    "properties": {
        "object": {"const": "embedding"},
        "index": {"type": "integer"},
        "embedding": {"anyOf": [_NUMBERS, {"type": "string", "contentEncoding": "base64"}]},
    }
}
_CLASS = _object("index", "label", "probs", "num_classes") | {
    "properties": {
        "index": {"type": "integer"},
        "label": {"type": "string"},
        "probs": _NUMBERS,
        "num_classes": {"type": "integer"},
    }
}
# Of each operation: what its 200 holds, and which errors it has. Changes are told apart by path.
ANSWERS: dict[tuple[str, str], tuple[Json, tuple[int, ...]]] = {
    ("post", "/v1/chat/completions"): (_answer("chat.completion"), _COMPLETION),
    ("post", "/v1/completions"): (_answer("text_completion"), _COMPLETION),
    ("post", "/v1/embeddings"): (_pooled(_EMBEDDING), _COMPLETION),
    ("post", "/classify"): (_pooled(_CLASS), _COMPLETION),
    ("get", "/v1/models"): (
        _json(
            _object("object", "data") | {"properties": {"data": {"type": "array", "items": _MODEL}}}
        ),
        (401,),
    ),
    ("get", "/v1/models/{model_id}"): (_json(_MODEL), (401, 404)),
    ("get", "/v1/experts"): (_json(_object("placement_version")), (401, 500, 503)),
    ("get", "/health"): (_json(_object("status")), (503,)),
    ("get", "/version"): (_json(_object("version")), ()),
    ("get", "/metrics"): ({"text/plain": {"schema": {"type": "string"}}}, ()),
    ("get", "/"): (_json(_object("name", "version", "model", "docs")), ()),
}
_CHANGED = _json(
    _object("pipelines") | {"properties": {"pipelines": {"type": "array", "items": _object()}}}
)


def complete(document: Json) -> Json:
    """The document with every answer of every operation, in place."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for fastapi_s in ("HTTPValidationError", "ValidationError"):
        schemas.pop(fastapi_s, None)
    schemas["Error"] = ERROR_SCHEMA
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content, errors = ANSWERS.get((method, path), (_CHANGED, _CHANGE))
            operation["responses"] = _responses(content, errors)
            if path.startswith(("/v1/", "/classify")):
                operation["security"] = [{"key": []}, {}]  # none where the server has no keys
    return document


def _responses(content: Json, errors: tuple[int, ...]) -> Json:
    responses: Json = {"200": {"description": HTTPStatus.OK.phrase, "content": content}}
    for status in errors:
        error = {"$ref": "#/components/schemas/Error"}
        responses[str(status)] = {"description": _ERRORS[status], "content": _json(error)}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            text = "whole seconds until it would be let in"
            responses["429"]["headers"] = {
                "Retry-After": {"description": text, "schema": {"type": "integer", "minimum": 1}}
            }
    return responses

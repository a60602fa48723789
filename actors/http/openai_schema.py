"""What clients may send to /v1/chat/completions and /v1/completions, and what is refused.

`parse_request` reads the bodies of the other routes too.

Types are strict ("1" is no number, true is no integer), unknown fields are refused by name, and
null means "not given". What needs the model (vocabulary, context) is checked in completion_plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from actors.http.errors import BadRequest
from actors.http.request_fields import (
    Prompt,
    encodable,
    read_content,
    read_logit_bias,
    read_prompts,
    read_stop,
)

MAX_CHOICES = 128
MAX_STOP_TOKEN_IDS = 256
MAX_TOP_LOGPROBS = 20
INT64 = 2**63

# Fields of OpenAI's API that would change the answer, with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": (),
    "verbosity": (),
    "web_search_options": (),
}


class Fields(BaseModel):
    """A part of a body: strict, and nothing in it that is not named."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Fields):
    """Extras of a streamed answer."""

    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, fields: object) -> object:
        return without_nulls(fields) if isinstance(fields, dict) else fields


class Message(Fields):
    """One turn. `name` is accepted and unused: the chat format has no place for it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str,
        BeforeValidator(read_content),
        AfterValidator(encodable),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
        ),
    ]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, fields: object) -> object:
        return without_nulls(fields) if isinstance(fields, dict) else fields


class SamplingFields(Fields):
    """What both endpoints share."""

    model: Annotated[str | None, Field(description="default: the served model")] = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, description="0: greedy")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, description="0 or -1: off")] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    # Of much smaller ones the quotient with a logit is infinite.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] = 1.0
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        PlainValidator(read_logit_bias),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
    ] = ()
    stop: Annotated[
        tuple[Annotated[str, AfterValidator(encodable)], ...],
        BeforeValidator(read_stop),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        ),
    ] = ()
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOP_TOKEN_IDS)] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    priority: Annotated[
        int, Field(ge=-INT64, lt=INT64, description="lower: earlier its turn, later preempted")
    ] = 0
    user: Annotated[str | None, Field(description="accepted, unused; so are the five below")] = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise BadRequest(
                "stream_options is only allowed with stream: true", param="stream_options"
            )
        return self


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    parallel_tool_calls: Any = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise BadRequest(
                "max_tokens and max_completion_tokens differ: give one", param="max_tokens"
            )
        return self


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(read_prompts),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                    {"type": "array", "items": {"type": "integer"}},
                    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
                ]
            }
        ),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Annotated[int | None, Field(description="only as many as n")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise BadRequest("echo with logprobs is not supported", param="echo")
        if self.best_of not in (None, self.n):
            raise BadRequest("best_of other than n is not supported", param="best_of")
        return self


Schema = TypeVar("Schema", bound=SamplingFields)
Body = TypeVar("Body", bound=BaseModel)


def parse_request(body: bytes, schema: type[Body]) -> Body:
    """Reads a JSON body.

    Raises:
        BadRequest: not UTF-8, not JSON, not an object, or a field is wrong (named in `param`).
    """
    not_json: list[str] = []  # NaN and Infinity, which Python's parser would take

    def constant(name: str) -> float:
        not_json.append(name)
        return math.nan

    try:
        fields = json.loads(body.decode(), parse_constant=constant)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    fields = without_nulls(fields)
    if issubclass(schema, SamplingFields):
        for name, neutral in UNSUPPORTED.items():
            if name in fields and fields.pop(name) not in neutral:
                raise BadRequest(
                    f"{name} is not supported", param=name, code="unsupported_parameter"
                )
    known = {field.alias or name for name, field in schema.model_fields.items()}
    for name in fields:
        if name not in known:
            raise _unknown(name)
    try:
        request = schema.model_validate(fields)
    except ValidationError as error:
        raise _bad_field(error) from error
    if not_json:
        raise BadRequest(f"the body is not valid JSON: {not_json[0]}")
    return request


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are given."""
    return {name: value for name, value in fields.items() if value is not None}


def _bad_field(error: ValidationError) -> BadRequest:
    """The first thing pydantic found, as an error that names the field: `messages[1].role`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    if first["type"] == "extra_forbidden":
        return _unknown(param)
    message = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"{param}: {message}", param=param)


def _unknown(param: str) -> BadRequest:
    return BadRequest(f"unknown field: {param}", param=param, code="unknown_parameter")

"""What clients may send to /v1/embeddings and /classify. Read by `parse_request`, as all bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from actors.http.errors import BadRequest
from actors.http.openai_schema import INT64, Fields
from actors.http.request_fields import Prompt, read_inputs

Inputs = Annotated[
    tuple[Prompt, ...],
    PlainValidator(read_inputs),
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


class PoolingFields(Fields):
    """What both endpoints share."""

    input: Inputs
    model: Annotated[str | None, Field(description="default: the served model")] = None
    add_special_tokens: Annotated[
        bool, Field(description="before a text the BOS token, behind it what the model wants")
    ] = True
    priority: Annotated[
        int, Field(ge=-INT64, lt=INT64, description="lower: earlier its turn, later preempted")
    ] = 0
    user: Annotated[str | None, Field(description="accepted, unused; so is metadata")] = None
    metadata: Any = None


class EmbeddingRequest(PoolingFields):
    """Body of POST /v1/embeddings."""

    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="base64: of float32, little-endian")
    ] = "float"
    dimensions: Annotated[
        int | None, Field(description="refused: a vector has as many as the model's rows")
    ] = None

    @model_validator(mode="after")
    def _all_dimensions(self) -> Self:
        if self.dimensions is not None:
            raise BadRequest(
                "dimensions is not supported: a vector has as many as the model's rows",
                param="dimensions",
                code="unsupported_parameter",
            )
        return self


class ClassifyRequest(PoolingFields):
    """Body of POST /classify."""

"""Settings: what requests may ask for, how much of it at once, and who may ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, SecretStr, field_validator

from configs.setting import setting


class RequestSettings(BaseModel):
    """Within which limits, and behind which doors."""

    max_num_seqs: Annotated[
        int, setting("limits", "most sequences one attention actor runs at once", ge=1)
    ] = 64
    max_num_batched_tokens: Annotated[
        int,
        setting(
            "limits",
            "most rows in one step; longer prompts are cut into chunks, and those above 512 rows"
            " where a step of them would take long, unless max_itl_stretch is 0",
            ge=1,
        ),
    ] = 2048
    max_itl_stretch: Annotated[
        float,
        setting(
            "limits",
            "prompts are cut so that a step with one takes at most so many times one that only"
            " decodes; each more that waits adds as much, or more if more wait than are decoded;"
            " 0: whole steps for prompts",
        ),
    ] = 2.0
    micro_batches: Annotated[
        int,
        setting(
            "limits",
            "parts of a step of which experts compute one while attention computes another;"
            " 0: as many as measured times say pay",
            ge=0,
            le=3,
        ),
    ] = 0
    kv_cache_memory_bytes: Annotated[
        int | None,
        setting(
            "limits",
            "KV cache of one attention actor; default: 1 GiB on cpu, what is left of the GPU"
            " on cuda",
            ge=1,
        ),
    ] = None
    block_size: Annotated[int, setting("limits", "tokens in one KV block", ge=1)] = 16
    enable_prefix_caching: Annotated[
        bool, setting("limits", "share the KV blocks of prompts that begin alike: true or false")
    ] = True
    max_num_queued_reqs: Annotated[
        int,
        setting(
            "limits", "sequences of one ingress that may wait for their first token; then 429", ge=1
        ),
    ] = 256
    max_queue_time_s: Annotated[
        float,
        setting(
            "limits",
            "longest that a first token may be away when a request comes, by the pace of the line"
            " it would join; then 429",
            gt=0,
        ),
    ] = 5.0
    max_queued_tokens: Annotated[
        int | None,
        setting("limits", "tokens their prompts may have together; default: any number", ge=1),
    ] = None
    max_requests_per_minute: Annotated[
        int | None,
        setting("limits", "completions one API key may ask for; default: any number", ge=1),
    ] = None
    max_tokens_per_minute: Annotated[
        int | None,
        setting(
            "limits", "tokens, prompts' and generated, of one API key; default: any number", ge=1
        ),
    ] = None
    host: Annotated[str, setting("HTTP", "address the HTTP server binds", min_length=1)] = (
        "127.0.0.1"
    )
    port: Annotated[int, setting("HTTP", "port the HTTP server binds", ge=1, le=65535)] = 8000
    ingress_replicas: Annotated[int, setting("HTTP", "HTTP ingress processes", ge=1)] = 1
    max_request_bytes: Annotated[
        int, setting("HTTP", "longest body of a request; more is answered with 413", ge=1)
    ] = 4 * 2**20
    allowed_origins: Annotated[
        tuple[str, ...],
        setting(
            "HTTP",
            "web page's origin whose scripts may read answers (CORS), or *; again for more",
        ),
    ] = ()
    api_key: Annotated[
        tuple[SecretStr, ...],
        setting(
            "doors",
            "key that requests to /v1 need; again for more. Others see it in `ps`, and in what Ray"
            " shows of a Serve file: the file below or WINDROSE_API_KEY keep it to themselves",
        ),
    ] = ()
    api_key_file: Annotated[
        str | None, setting("doors", "file of such keys, one a line", min_length=1)
    ] = None
    admin_api_key: Annotated[
        tuple[SecretStr, ...],
        setting(
            "doors",
            "key that POST /v1/experts/... needs instead, again for more; or"
            " WINDROSE_ADMIN_API_KEY. Without one these routes refuse where --host is not loopback",
        ),
    ] = ()
    admin_api_key_file: Annotated[
        str | None, setting("doors", "file of such keys, one a line", min_length=1)
    ] = None

    @field_validator("allowed_origins", "api_key", "admin_api_key", mode="before")
    @classmethod
    def _one_is_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("max_itl_stretch")
    @classmethod
    def _stretch_leaves_time(cls, value: float) -> float:
        if value != 0 and not value > 1:
            raise ValueError("must be more than 1, or 0")
        return value

"""Every value that crosses between actors. Plain data: no handles, no tensors, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.head import Pooling
from model.sampling_params import SamplingParams, TokenLogprobs

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Ingress to router to attention actor: one sequence to continue, or to pool.

    `output_token_ids` are tokens the client already has: empty at first, filled when the
    request is submitted again after an attention actor died. Sampling goes on behind them.
    """

    request_id: str
    ingress_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    output_token_ids: tuple[int, ...] = ()
    arrival_s: float = 0.0  # time.time() at the ingress
    priority: int = 0  # the lower, the earlier its turn
    weights: str = ""  # those that made the output tokens: no others may go on; "": any
    pooling: Pooling | None = None  # given: no token is drawn, the answer is a vector


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Attention actor to ingress: the next tokens of one request, and its end if it ended.

    `logprobs` has one entry per token where the request asked for them, else is None.
    `stop_token_id` is the id that ended the sequence with "stop" (it is in `token_ids`, last).
    `num_cached_tokens` is how many leading tokens the KV cache knew when the request came; told
    with the first tokens that are made for it here; so is `queue_s`, from the request's arrival to
    its first row. `recovered`: from when to when (Unix seconds) the loss of an actor kept the
    request from going on, told with the next tokens. `vector` is the answer to a request with
    `pooling`, float32 and little-endian; it comes with the end, and no token does.
    """

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    vector: bytes = b""
    queue_s: float | None = None
    recovered: tuple[float, float] | None = None


StepEvents = list[TokenEvent]  # one message: everything one step made for one ingress

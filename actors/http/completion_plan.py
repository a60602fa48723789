"""From a validated body to the sequences to generate: tokenizing, limits, seeds."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from actors.http.errors import BadRequest, NotFound
from actors.http.openai_schema import ChatRequest, CompletionRequest, SamplingFields, Schema
from actors.http.serving_state import ServingState
from actors.messages import GenerateRequest
from model.chat_format import ChatFormatError, ChatMessage
from model.chat_template import NoChatTemplate
from model.sampling_params import SamplingParams

COMPLETION_MAX_TOKENS = 16  # of /v1/completions where the client gives none, as OpenAI and vLLM
_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Of a request. Where its texts are longer, they are tokenized off the event loop, which streams to
# others.
LONG_TEXT_CHARS = 16_384


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence of a request. `echo` is what comes before its generated text."""

    index: int
    request: GenerateRequest
    echo: str
    counts_prompt: bool  # the first of its prompt: OpenAI bills a prompt once for all n choices


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """Everything to be done for one HTTP request, and how to show it."""

    id: str
    created_s: int
    model_name: str
    choices: tuple[Choice, ...]
    prompt_tokens: int  # each prompt counted once
    stop: tuple[str, ...]
    include_stop: bool
    include_usage: bool
    return_token_ids: bool
    continues_prompt: bool  # a completion's text follows the prompt's; a chat answer stands alone


async def plan_chat(body: ChatRequest, state: ServingState, request_id: str) -> CompletionPlan:
    """Raises BadRequest or NotFound naming the field that cannot be served."""
    check_model(body.model, state)
    body = _with_defaults(body, state)
    messages = [
        ChatMessage("system" if m.role == "developer" else m.role, m.content) for m in body.messages
    ]
    num_chars = sum(len(m.content) for m in body.messages)

    render = state.chat_format.render
    try:
        if num_chars > LONG_TEXT_CHARS:
            prompt = await asyncio.to_thread(render, messages)
        else:
            prompt = render(messages)
    except NoChatTemplate as error:
        raise BadRequest(str(error), param="messages", code="no_chat_template") from error
    except ChatFormatError as error:
        raise BadRequest(f"messages: {error}", param="messages") from error
    asked: int | None
    if body.max_completion_tokens is not None:
        asked_field, asked = "max_completion_tokens", body.max_completion_tokens
    else:
        asked_field, asked = "max_tokens", body.max_tokens
    left = _tokens_left(prompt, "messages", asked, asked_field, state)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limit = asked or min(left, state.defaults.max_new_tokens or left)
    choices = _choices(body, state, request_id, [(tuple(prompt), "")], [limit], logprobs)
    return _plan("chatcmpl-", body, state, choices, len(prompt))


async def plan_completion(
    body: CompletionRequest, state: ServingState, request_id: str
) -> CompletionPlan:
    """Raises BadRequest or NotFound naming the field that cannot be served."""
    check_model(body.model, state)
    body = _with_defaults(body, state)
    most = min(COMPLETION_MAX_TOKENS, state.defaults.max_new_tokens or COMPLETION_MAX_TOKENS)
    prompts: list[tuple[tuple[int, ...], str]] = []
    limits: list[int] = []
    for prompt, ids in zip(body.prompt, await all_ids(body.prompt, state), strict=True):
        left = _tokens_left(ids, "prompt", body.max_tokens, "max_tokens", state)
        check_ids(ids, "prompt", state)
        echo = ""
        if body.echo:
            echo = prompt if isinstance(prompt, str) else state.tokenizer.decode(prompt)
        prompts.append((ids, echo))
        limits.append(body.max_tokens or min(most, left))
    choices = _choices(body, state, request_id, prompts, limits, body.logprobs)
    return _plan("cmpl-", body, state, choices, sum(len(ids) for ids, _ in prompts))


async def all_ids(
    prompts: Sequence[str | tuple[int, ...]],
    state: ServingState,
    *,
    add_bos: bool = True,
    add_eos: bool = False,
) -> list[tuple[int, ...]]:
    """Each prompt's tokens; those of a text behind BOS and before EOS, where asked for."""
    behind = (state.tokenizer.eos_id,) if add_eos else ()

    def ids_of(prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            return prompt
        return (*state.tokenizer.encode(prompt, add_bos=add_bos), *behind)

    if sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) <= LONG_TEXT_CHARS:
        return [ids_of(prompt) for prompt in prompts]
    return await asyncio.to_thread(lambda: [ids_of(prompt) for prompt in prompts])


def _with_defaults(body: Schema, state: ServingState) -> Schema:
    """The body, with the model's own defaults in fields that the client left out."""
    defaults = {
        name: getattr(state.defaults, name)
        for name in _DEFAULTED
        if name not in body.model_fields_set
    }
    return body.model_copy(update=defaults)


def check_model(name: str | None, state: ServingState) -> None:
    """Raises NotFound where a request is for another model."""
    if name not in (None, state.model_name):
        raise NotFound(
            f"the model {name!r} does not exist; this server has {state.model_name!r}",
            param="model",
            code="model_not_found",
        )


def check_ids(ids: tuple[int, ...] | list[int], param: str, state: ServingState) -> None:
    """Raises BadRequest for a token id that the model does not have."""
    outside = [
        i for i in (min(ids, default=0), max(ids, default=0)) if not 0 <= i < state.vocab_size
    ]
    if outside:
        raise BadRequest(
            f"{param}: token id {outside[0]} is not in the vocabulary of {state.vocab_size}",
            param=param,
        )


def _tokens_left(
    prompt: list[int] | tuple[int, ...],
    prompt_field: str,
    asked: int | None,
    asked_field: str,
    state: ServingState,
) -> int:
    """How many tokens the context has room for behind the prompt; at least `asked`, or refused."""
    left = state.max_model_len - len(prompt)
    if left < 1:
        raise BadRequest(
            f"{prompt_field} has {len(prompt)} tokens; the context is {state.max_model_len} tokens"
            " and at least one must be left for the answer",
            param=prompt_field,
            code="context_length_exceeded",
        )
    if asked is not None and asked > left:
        raise BadRequest(
            f"{asked_field} is {asked} and {prompt_field} has {len(prompt)} tokens; together they"
            f" exceed the context of {state.max_model_len} tokens",
            param=asked_field,
            code="context_length_exceeded",
        )
    return left


def _choices(
    body: SamplingFields,
    state: ServingState,
    request_id: str,
    prompts: list[tuple[tuple[int, ...], str]],
    limits: list[int],
    logprobs: int | None,
) -> tuple[Choice, ...]:
    """`n` choices for each (prompt, echo), prompt by prompt, as OpenAI numbers them.

    Clients may use an id twice, so each sequence has its own, which begins with the client's.
    """
    check_ids(body.stop_token_ids, "stop_token_ids", state)
    check_ids([token_id for token_id, _ in body.logit_bias], "logit_bias", state)
    arrival_s = time.time()
    choices: list[Choice] = []
    for (ids, echo), max_tokens in zip(prompts, limits, strict=True):
        seed = secrets.randbits(63) if body.seed is None else body.seed  # a prompt may come twice
        for i in range(body.n):
            params = SamplingParams(
                max_tokens=max_tokens,
                seed=_choice_seed(seed, i),
                temperature=body.temperature,
                top_p=body.top_p,
                top_k=min(max(body.top_k, 0), state.vocab_size),
                min_p=body.min_p,
                presence_penalty=body.presence_penalty,
                frequency_penalty=body.frequency_penalty,
                repetition_penalty=body.repetition_penalty,
                logit_bias=body.logit_bias,
                logprobs=logprobs,
                stop_token_ids=tuple(body.stop_token_ids),
                ignore_eos=body.ignore_eos,
            )
            request = GenerateRequest(
                f"{request_id}/{uuid.uuid4().hex}",
                state.ingress_id,
                ids,
                params,
                arrival_s=arrival_s,
                priority=body.priority,
            )
            choices.append(Choice(len(choices), request, echo, counts_prompt=i == 0))
    return tuple(choices)


def _choice_seed(seed: int, i: int) -> int:
    """The seed of the i-th of n choices, in [0, 2**63): the first one's is the request's own."""
    if i:
        digest = hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "big")
    return seed % 2**63


def _plan(
    prefix: str,
    body: SamplingFields,
    state: ServingState,
    choices: tuple[Choice, ...],
    prompt_tokens: int,
) -> CompletionPlan:
    return CompletionPlan(
        id=prefix + uuid.uuid4().hex,
        created_s=int(time.time()),
        model_name=state.model_name,
        choices=choices,
        prompt_tokens=prompt_tokens,
        stop=body.stop,
        include_stop=body.include_stop_str_in_output,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        return_token_ids=body.return_token_ids,
        continues_prompt=isinstance(body, CompletionRequest),
    )

"""Answers in OpenAI's shapes, whole and streamed.

A streamed chunk is put together from parts that are encoded once per request: at hundreds of
chunks a second, on few cores, building and validating an object for each would cost more than
everything else the ingress does.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar

from actors.http.completion import Delta
from actors.http.completion_plan import CompletionPlan
from model.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # JSON has no -Infinity
DONE = b"data: [DONE]\n\n"

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Answer(ABC):
    """The answer to one request, made of its deltas. Serves one call of whole() or stream()."""

    object_name: ClassVar[str]
    chunk_name: ClassVar[str]

    def __init__(self, plan: CompletionPlan, tokenizer: Tokenizer) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._opened: set[int] = set()
        self._generated_tokens = 0
        self._cached_tokens: dict[int, int] = {}  # by choice
        self._head = f"data: {to_json(self._envelope(self.chunk_name))[:-1]}"
        self._tail = ',"usage":null}\n\n' if plan.include_usage else "}\n\n"

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> bytes:
        """The body of an answer that is not streamed."""
        received: list[list[Delta]] = [[] for _ in self._plan.choices]
        async with aclosing(deltas):
            async for delta in deltas:
                received[delta.index].append(delta)
                self._count(delta)
        answer = self._envelope(self.object_name)
        answer["choices"] = [self._choice(_joined(parts)) for parts in received]
        answer["usage"] = self._usage()
        if self._plan.return_token_ids:
            answer |= self._prompt_ids_of_answer()
        return to_json(answer).encode()

    async def stream(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        """The server-sent events of a streamed answer: one per delta that shows something."""
        async with aclosing(deltas):
            async for delta in deltas:
                self._count(delta)
                if events := self._events(delta):
                    yield events.encode()
        if self._plan.include_usage:
            usage = to_json(self._usage())
            yield f'{self._head},"choices":[],"usage":{usage}}}\n\n'.encode()
        yield DONE

    def _envelope(self, name: str) -> dict[str, Any]:
        plan = self._plan
        return {
            "id": plan.id,
            "object": name,
            "created": plan.created_s,
            "model": plan.model_name,
        }

    def _count(self, delta: Delta) -> None:
        self._generated_tokens += len(delta.token_ids)
        self._cached_tokens.setdefault(delta.index, delta.num_cached_tokens)

    def _usage(self) -> dict[str, Any]:
        billed = [choice.index for choice in self._plan.choices if choice.counts_prompt]
        return {
            "prompt_tokens": self._plan.prompt_tokens,
            "completion_tokens": self._generated_tokens,
            "total_tokens": self._plan.prompt_tokens + self._generated_tokens,
            "prompt_tokens_details": {
                "cached_tokens": sum(self._cached_tokens.get(index, 0) for index in billed)
            },
        }

    def _events(self, delta: Delta) -> str:
        with_ids = self._plan.return_token_ids
        opening, extra = "", ""
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            opening, extra = self._opening(delta.index)
        if not (delta.text or delta.finish_reason or delta.logprobs or with_ids):
            return opening
        reason = "null" if delta.finish_reason is None else f'"{delta.finish_reason}"'
        if with_ids:
            extra += f',"token_ids":{to_json(delta.token_ids)}'
        logprobs = to_json(self._logprobs(delta)) if delta.logprobs else "null"
        return (
            f'{opening}{self._head},"choices":[{{"index":{delta.index},'
            f'{self._text_field(to_json(delta.text))},"logprobs":{logprobs},'
            f'"finish_reason":{reason}{extra}}}]{self._tail}'
        )

    def _choice(self, delta: Delta) -> dict[str, Any]:
        choice = {
            "index": delta.index,
            **self._text_of_whole(delta.text),
            "logprobs": self._logprobs(delta) if delta.logprobs else None,
            "finish_reason": delta.finish_reason,
        }
        if self._plan.return_token_ids:
            choice |= {"token_ids": delta.token_ids, **self._prompt_ids_of_choice(delta.index)}
        return choice

    @abstractmethod
    def _opening(self, index: int) -> tuple[str, str]:
        """Events before a choice's first delta, and further fields of that delta's choice."""

    @abstractmethod
    def _text_field(self, text_json: str) -> str:
        """The member of a streamed choice that holds its text."""

    @abstractmethod
    def _text_of_whole(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, delta: Delta) -> dict[str, Any]: ...

    def _prompt_ids_of_answer(self) -> dict[str, Any]:
        return {}

    def _prompt_ids_of_choice(self, index: int) -> dict[str, Any]:
        return {}


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def _opening(self, index: int) -> tuple[str, str]:
        ids = ""
        if self._plan.return_token_ids:
            ids = "," + to_json(self._prompt_ids_of_answer())[1:-1]
        role = '{"role":"assistant","content":""}'
        choice = f'{{"index":{index},"delta":{role},"logprobs":null,"finish_reason":null}}'
        return f'{self._head},"choices":[{choice}]{ids}{self._tail}', ""

    def _text_field(self, text_json: str) -> str:
        return f'"delta":{{"content":{text_json}}}'

    def _text_of_whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _prompt_ids_of_answer(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._plan.choices[0].request.prompt_token_ids}

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._token(token_id, values.logprob),
                    "top_logprobs": [self._token(i, logprob) for i, logprob in values.top],
                }
                for token_id, values in zip(delta.token_ids, delta.logprobs, strict=True)
            ]
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokenizer.token_text(token_id),
            "logprob": max(MIN_LOGPROB, logprob),
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }


class CompletionAnswer(Answer):
    """Of /v1/completions."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, plan: CompletionPlan, tokenizer: Tokenizer) -> None:
        super().__init__(plan, tokenizer)
        self._offsets_chars = [0] * len(plan.choices)

    def _opening(self, index: int) -> tuple[str, str]:
        if not self._plan.return_token_ids:
            return "", ""
        return "", "," + to_json(self._prompt_ids_of_choice(index))[1:-1]

    def _text_field(self, text_json: str) -> str:
        return f'"text":{text_json}'

    def _text_of_whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _prompt_ids_of_choice(self, index: int) -> dict[str, Any]:
        return {"prompt_token_ids": self._plan.choices[index].request.prompt_token_ids}

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        text, token_bytes = self._tokenizer.token_text, self._tokenizer.token_bytes
        top, offsets = [], []
        for token_id, values in zip(delta.token_ids, delta.logprobs, strict=True):
            best: dict[str, float] = {}
            for i, logprob in (*values.top, (token_id, values.logprob)):
                best.setdefault(text(i), max(MIN_LOGPROB, logprob))
            top.append(best)
            offsets.append(self._offsets_chars[delta.index])
            # Every byte but UTF-8's continuation bytes begins a character.
            self._offsets_chars[delta.index] += sum(b & 0xC0 != 0x80 for b in token_bytes(token_id))
        return {
            "tokens": [text(token_id) for token_id in delta.token_ids],
            "token_logprobs": [max(MIN_LOGPROB, v.logprob) for v in delta.logprobs],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _joined(parts: list[Delta]) -> Delta:
    """A choice's deltas as one; there is always a last one, which has the finish reason."""
    return Delta(
        parts[-1].index,
        "".join(part.text for part in parts),
        tuple(token_id for part in parts for token_id in part.token_ids),
        tuple(values for part in parts for values in part.logprobs),
        parts[-1].finish_reason,
    )

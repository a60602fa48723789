"""What is known of one HTTP request at its end: for its line in the log, and for its trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from time import perf_counter

from actors.http.errors import ApiError
from actors.messages import FinishReason, TokenEvent


@dataclass(slots=True)
class SequenceRecord:
    """One choice. Times are Unix seconds by this machine's clock, 0 for what has not happened."""

    prompt_tokens: int
    arrival_s: float
    counts_prompt: bool = True  # the first of its prompt
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt
    first_row_s: float = 0.0  # when the first row of the prompt ran
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    finish_reason: FinishReason | None = None
    recoveries: list[tuple[float, float]] = field(default_factory=list)  # from, to
    answer: list[str] = field(default_factory=list)  # only where answers are to be logged

    def note(self, event: TokenEvent, now_s: float) -> None:
        """Tokens came, or a vector."""
        if event.recovered is not None:
            self.recoveries.append(event.recovered)
        if not event.token_ids and not event.vector:
            return
        if not self.first_token_s:
            self.first_token_s = now_s
            self.cached_tokens = event.num_cached_tokens
            if event.queue_s is not None:  # a duration: clocks of two machines may differ
                self.first_row_s = min(self.arrival_s + event.queue_s, now_s)
        self.last_token_s = now_s
        self.completion_tokens += len(event.token_ids)


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in while it is served. `arrived_s` is on the clock of perf_counter."""

    request_id: str = ""
    method: str = ""
    path: str = ""
    traceparent: str | None = None  # W3C's, as the client sent it
    tracestate: str | None = None
    at_s: float = field(default_factory=time.time)  # Unix
    arrived_s: float = field(default_factory=perf_counter)
    caller: str | None = None  # a name for the key; never the key
    status: int = 0  # 0: the client left before the answer began
    error: ApiError | None = None
    prompt_tokens: int = 0  # each prompt counted once
    sequences: list[SequenceRecord] = field(default_factory=list)
    prompt: object = None  # only where prompts are to be logged
    total_s: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it ended in an error that is not its client's fault."""
        return self.status >= 500 or (self.error is not None and self.error.status >= 500)

    def fields(self) -> dict[str, object]:
        """What its line in the log says; what did not come to be is left out."""
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "caller": self.caller,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "error": None if self.error is None else self.error.code or self.error.type,
            "total_ms": _ms(self.total_s),
        }
        if self.sequences:
            fields |= self._of_sequences()
        return {name: value for name, value in fields.items() if value is not None}

    def _of_sequences(self) -> dict[str, object]:
        sequences = self.sequences
        reasons = [one.finish_reason for one in sequences]
        first_rows = [one.first_row_s - self.at_s for one in sequences if one.first_row_s]
        first_tokens = [one.first_token_s - self.at_s for one in sequences if one.first_token_s]
        answers = ["".join(one.answer) for one in sequences]
        return {
            "finish_reason": reasons[0] if len(reasons) == 1 else reasons,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": sum(one.completion_tokens for one in sequences),
            "cached_tokens": sum(one.cached_tokens for one in sequences if one.counts_prompt),
            "queue_ms": _ms(max(0.0, min(first_rows))) if first_rows else None,
            "ttft_ms": _ms(min(first_tokens)) if first_tokens else None,
            "recoveries": sum(len(one.recoveries) for one in sequences),
            "prompt": self.prompt,
            "answer": None if self.prompt is None else answers[0] if len(answers) == 1 else answers,
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

"""What every request needs to know about the server it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from actors.http.doors import Doors
from actors.http.errors import Draining
from actors.http.rate_limits import RateLimits
from actors.http.request_metrics import RequestMetrics
from actors.http.request_record import RequestRecord
from actors.http.token_source import TokenSource
from actors.http.waiting_line import LineLimits, Place, WaitingLine
from model.chat_template import ChatFormat
from model.generation_config import GenerationDefaults
from model.head import ModelHead, Pooling
from model.tokenizer import Tokenizer


@dataclass(slots=True)
class ServingState:
    """One ingress. Mutable are `draining`, `num_in_flight`, and what the limits have counted."""

    model_name: str
    tokenizer: Tokenizer
    chat_format: ChatFormat
    max_model_len: int  # tokens of prompt + answer
    vocab_size: int  # of the model; ids below it may be sent
    source: TokenSource
    metrics: RequestMetrics
    started_s: int  # Unix time
    version: str
    ingress_id: str = ""
    doors: Doors = field(default_factory=Doors)
    allowed_origins: tuple[str, ...] = ()
    max_request_bytes: int = 4 * 2**20
    body_timeout_s: float = 60.0
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    head: ModelHead = field(default_factory=ModelHead)
    pooling: Pooling = "last"  # of embeddings
    add_eos: bool = False  # behind a text that is pooled
    request_timeout_s: float | None = None
    line: WaitingLine = field(default_factory=lambda: WaitingLine(LineLimits(256)))
    rates: RateLimits = field(default_factory=RateLimits)
    log_prompts: bool = False
    on_end: Callable[[RequestRecord], None] = lambda _record: None  # of every request
    draining: bool = False
    num_in_flight: int = 0  # sequences accepted and not yet ended

    def refuse_if_full(self, prompts: Sequence[int] = ()) -> None:
        """Raises Draining or Overloaded where prompts of these lengths cannot be taken."""
        if self.draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        self.line.refuse_if_full(prompts, perf_counter())

    @contextmanager
    def admitted(self, prompts: Sequence[int]) -> Iterator[tuple[Place, ...]]:
        """Counts a request's sequences as in flight while inside; gives each its place in line.

        Raises as refuse_if_full.
        """
        self.refuse_if_full(prompts)
        with self.line.places(prompts, perf_counter()) as places:
            self.num_in_flight += len(prompts)
            try:
                yield places
            finally:
                self.num_in_flight -= len(prompts)

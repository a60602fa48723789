"""What every request needs to know about the server it came to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from actors.doors import Doors
from actors.errors import Draining, Overloaded
from actors.request_metrics import RequestMetrics
from actors.token_source import TokenSource
from model.chat_template import ChatFormat
from model.generation_config import GenerationDefaults
from model.tokenizer import Tokenizer


@dataclass(slots=True)
class ServingState:
    """One ingress. The only mutable values are `draining` and `num_in_flight`."""

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
    max_queued_requests: int = 1024
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    draining: bool = False
    num_in_flight: int = 0  # sequences accepted and not yet ended

    def refuse_if_full(self, sequences: int = 1) -> None:
        """Raises Draining or Overloaded where `sequences` more cannot be taken.

        An idle server takes any one request, however many choices it asks for.
        """
        if self.draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        if self.num_in_flight and self.num_in_flight + sequences > self.max_queued_requests:
            raise Overloaded(
                f"{self.num_in_flight} requests are running or waiting, "
                f"at most {self.max_queued_requests} may: try again later"
            )

    @contextmanager
    def admitted(self, sequences: int) -> Iterator[None]:
        """Counts `sequences` as in flight while inside. Raises as refuse_if_full."""
        self.refuse_if_full(sequences)
        self.num_in_flight += sequences
        try:
            yield
        finally:
            self.num_in_flight -= sequences

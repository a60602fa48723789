"""One sequence under way, and the rows of it that a step runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.messages import FinishReason, GenerateRequest, TokenEvent
from actors.scheduling.scheduler_limits import SchedulerLimits
from model.sampling_params import TokenLogprobs

Turn = tuple[int, float, int]


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A request on its way: its tokens, and how far the KV cache holds them.

    `token_ids` is prompt + outputs, `output_token_ids` the outputs alone (those of an earlier
    submission included); both are live lists to read, changed by the scheduler only.
    """

    request: GenerateRequest
    request_id: str
    turn: Turn  # (priority, arrival_s, number here): the least comes first and goes last
    max_len: int  # the length of token_ids that ends it
    eos_ids: frozenset[int]  # empty where the request ignores EOS
    stop_ids: frozenset[int]  # eos_ids and the request's stop tokens
    num_prompt_tokens: int
    token_ids: list[int]
    output_token_ids: list[int]
    num_computed: int = 0  # leading tokens whose KV is valid
    block_ids: list[int] = field(default_factory=list)  # from its block number first_block on
    first_block: int = 0  # those before fell out of the sliding window
    block_keys: list[bytes] = field(default_factory=list)  # of its first blocks, as far as asked
    num_offered: int = 0  # leading blocks that the prefix cache gave or was given
    num_cached_tokens: int | None = None  # found computed when it was first admitted
    decoding: bool = False  # past prefill: exactly the last token is not computed yet
    begun: bool = False  # a row of it has been in a step
    queue_s: float | None = None  # from its arrival to that step; None where it began elsewhere
    ended: bool = False  # finished, or aborted while its chunk is in flight
    failed: bool = False  # ended by the model: what it has in the KV cache is not to be shared
    num_preemptions: int = 0

    @classmethod
    def of(
        cls, request: GenerateRequest, number: int, eos_ids: frozenset[int], max_model_len: int
    ) -> RunningSequence:
        """With nothing computed yet; `number` counts those of a scheduler.

        ValueError if the prompt is empty or leaves no room.
        """
        params, prompt = request.params, request.prompt_token_ids
        longest = max_model_len - 1 if request.pooling is None else max_model_len
        if not 0 < len(prompt) <= longest:
            raise ValueError(
                f"request {request.request_id}: a prompt of {len(prompt)} tokens; "
                f"from 1 to {longest} fit max_model_len {max_model_len}"
            )
        eos_ids = frozenset() if params.ignore_eos else eos_ids
        return cls(
            request=request,
            request_id=request.request_id,
            turn=(request.priority, request.arrival_s, number),
            max_len=min(len(prompt) + max(1, params.max_tokens), longest + 1),
            eos_ids=eos_ids,
            stop_ids=eos_ids.union(params.stop_token_ids),
            num_prompt_tokens=len(prompt),
            token_ids=[*prompt, *request.output_token_ids],
            output_token_ids=list(request.output_token_ids),
        )

    @property
    def priority(self) -> int:
        """Of the request: the lower, the more important."""
        return self.request.priority

    @property
    def has_new_tokens(self) -> bool:
        """Whether a token was made for it here, beyond those it came with."""
        return len(self.output_token_ids) > len(self.request.output_token_ids)

    @property
    def end_block(self) -> int:
        """The number of its first block that it has not been given yet."""
        return self.first_block + len(self.block_ids)

    def num_blocks_to_come(self, limits: SchedulerLimits) -> int:
        """Blocks it lacks to hold all its tokens and a next one, or what is seen of them."""
        num_tokens = len(self.token_ids) + (self.request.pooling is None)
        num_rows = min(num_tokens - self.num_computed, limits.max_num_batched_tokens)
        num_left = num_tokens - self.first_block * limits.block_size
        return limits.most_blocks(num_left, num_rows) - len(self.block_ids)

    def take(self, token_id: int, logprobs: TokenLogprobs | None) -> TokenEvent:
        """Append the token that a step drew; returns its event. `ended` if it is the last."""
        first = not self.has_new_tokens
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)
        self.decoding = True
        reason, stop_token_id = None, None
        if len(self.token_ids) >= self.max_len or token_id in self.stop_ids:
            reason, stop_token_id = self.end()
            self.ended = True
        return TokenEvent(
            self.request_id,
            (token_id,),
            None if logprobs is None else (logprobs,),
            reason,
            stop_token_id,
            (self.num_cached_tokens or 0) if first else 0,
            queue_s=self.queue_s if first else None,
        )

    def give(self, vector: bytes) -> TokenEvent:
        """End with what a step has pooled; returns the event."""
        self.ended = True
        return TokenEvent(
            self.request_id,
            (),
            finish_reason="stop",
            num_cached_tokens=self.num_cached_tokens or 0,
            vector=vector,
            queue_s=self.queue_s,
        )

    def end(self) -> tuple[FinishReason | None, int | None]:
        """Why the last output ends the sequence, if it does, and the stop token (None for EOS)."""
        if self.output_token_ids:
            last = self.output_token_ids[-1]
            if last in self.stop_ids:
                return "stop", None if last in self.eos_ids else last
        return ("length" if len(self.token_ids) >= self.max_len else None), None

    def check_integrity(self, block_size: int) -> None:
        """Assert what holds of a sequence that runs, between any two calls. For tests."""
        length, num_blocks = len(self.token_ids), self.end_block
        assert self.token_ids[self.num_prompt_tokens :] == self.output_token_ids
        assert self.num_computed == length - 1 if self.decoding else self.num_computed < length
        assert self.num_computed <= num_blocks * block_size
        assert (num_blocks - 1) * block_size < length < self.max_len


def by_turn(sequence: RunningSequence) -> Turn:
    """Key for sorting."""
    return sequence.turn


@dataclass(slots=True)
class ScheduledChunk:
    """Rows start .. start + num_tokens - 1 of one sequence, all with blocks."""

    sequence: RunningSequence
    start: int
    num_tokens: int
    samples: bool  # the last row's logits give the next token


@dataclass(slots=True)
class StepPlan:
    """The rows of one step, decodes first. True if there are any."""

    decodes: list[ScheduledChunk]  # one row each, of sequences past prefill
    prefills: list[ScheduledChunk]
    num_rows: int
    preempted: list[str]  # request ids that gave back their blocks

    def __bool__(self) -> bool:
        return self.num_rows > 0

    def sampling_chunks(self) -> list[ScheduledChunk]:
        """The chunks that sample, in the order in which finish_step takes their tokens."""
        return self.decodes + [chunk for chunk in self.prefills if chunk.samples]


@dataclass(slots=True)
class Room:
    """Rows that prefills may still have in a step."""

    rows: int
    prompt_rows: int  # of those, for prompts that nobody has read a token after

    def of(self, sequence: RunningSequence) -> int:
        """A stream that was interrupted waits for its next token as those do that go on."""
        return self.rows if sequence.output_token_ids else min(self.rows, self.prompt_rows)

    def take(self, sequence: RunningSequence, num_rows: int) -> None:
        """Give a sequence so many rows."""
        self.rows -= num_rows
        if not sequence.output_token_ids:
            self.prompt_rows -= num_rows

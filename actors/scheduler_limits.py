"""The bounds within which one attention actor schedules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one attention actor. ValueError unless every number is at least 1."""

    max_num_seqs: int
    max_num_batched_tokens: int  # rows in one step
    max_model_len: int  # prompt + outputs of one sequence
    block_size: int  # tokens in one KV block
    eos_token_ids: frozenset[int] | tuple[int, ...]
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

"""The bounds within which one attention actor schedules."""

from __future__ import annotations

from dataclasses import dataclass

from model.kv_size import blocks_in_sight


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one attention actor. ValueError for a number that cannot work, by its name."""

    max_num_seqs: int
    max_num_batched_tokens: int  # rows in one step
    max_model_len: int  # prompt + outputs of one sequence
    block_size: int  # tokens in one KV block
    eos_token_ids: frozenset[int] | tuple[int, ...]
    enable_prefix_caching: bool = True
    max_itl_stretch: float = 2.0  # a step beside one that only decodes; 0: no bound
    sliding_window: int | None = None  # positions that a row sees, its own included

    def check_pool(self, num_blocks: int) -> None:
        """ValueError if so many blocks cannot hold one sequence of max_model_len tokens.

        Of one with a sliding window only what a row sees is held.
        """
        capacity = num_blocks * self.block_size
        if num_blocks < self.most_blocks(self.max_model_len, 1):
            raise ValueError(
                f"the KV cache holds {capacity} tokens ({num_blocks} blocks of "
                f"{self.block_size}), fewer than max_model_len {self.max_model_len}: "
                "give it more memory or lower max_model_len"
            )

    def most_blocks(self, num_tokens: int, num_rows: int) -> int:
        """What a sequence of so many tokens holds at most while so many rows of it run at once."""
        blocks = -(-num_tokens // self.block_size)
        if self.sliding_window is not None:
            blocks = min(blocks, blocks_in_sight(self.sliding_window, num_rows, self.block_size))
        return blocks

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_itl_stretch != 0 and not self.max_itl_stretch > 1:
            raise ValueError(
                "max_itl_stretch must be more than 1, or 0 for no bound, "
                f"got {self.max_itl_stretch}"
            )

"""How well a checkpoint predicts a text: its perplexity, by the model that serves it.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.decoder import Decoder
from model.dispatch import LocalDispatcher
from model.expert_load import ExpertLoad
from model.feed_forward import MixtureOfExperts
from model.kv_cache import KVCache
from model.loading import load_decoder, load_experts
from model.rope import Rope
from model.step_batch import Chunk, build_batch
from model.tokenizer import Tokenizer

WINDOW_TOKENS = 512
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Windows:
    """A text cut into windows that are read apart, each after BOS."""

    token_ids: tuple[tuple[int, ...], ...]  # BOS included

    @property
    def num_predicted(self) -> int:
        """Tokens that are predicted from those before them: all but BOS."""
        return sum(len(window) - 1 for window in self.token_ids)


def read_windows(text_file: Path, model_dir: Path) -> Windows:
    """Tokenize a UTF-8 file and cut it.

    Raises:
        ValueError: cannot be read, is no UTF-8 or empty, or the checkpoint has no tokenizer.
    """
    try:
        text = text_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{text_file}: cannot be read: {error}") from error
    tokenizer = Tokenizer.from_dir(model_dir)
    token_ids = tokenizer.encode(text, add_bos=False)
    if not text.strip():
        raise ValueError(f"{text_file}: no text in it")
    longest = ModelConfig.from_dir(model_dir).max_position_embeddings
    size = min(WINDOW_TOKENS, longest) - 1
    starts = range(0, len(token_ids), size)
    return Windows(tuple((tokenizer.bos_id, *token_ids[at : at + size]) for at in starts))


@torch.inference_mode()
def perplexity(
    model_dir: Path, windows: Windows, on_window: Callable[[], None] = lambda: None
) -> float:
    """Return exp of the mean negative log-likelihood of the windows' tokens.

    In the checkpoint's dtype. The whole model is in this process's memory meanwhile.
    """
    decoder, cache = _build(model_dir, max(map(len, windows.token_ids)))
    total = 0.0
    for window in windows.token_ids:
        total += _negative_log_likelihood(decoder, cache, window)
        on_window()
    return math.exp(total / windows.num_predicted)


def _negative_log_likelihood(decoder: Decoder, cache: KVCache, window: Sequence[int]) -> float:
    rows = len(window) - 1
    blocks = list(range(-(-rows // _BLOCK)))
    batch = build_batch([], [Chunk(window[:-1], 0, blocks, True)], _BLOCK, torch.device("cpu"))
    logits_TV = decoder.forward(replace(batch, sample_rows_C=torch.arange(rows)), cache)
    found_T1 = torch.tensor(window[1:])[:, None]
    return -float(logits_TV.float().log_softmax(-1).gather(1, found_T1).double().sum())


def _build(model_dir: Path, longest: int) -> tuple[Decoder, KVCache]:
    config, checkpoint, cpu = ModelConfig.from_dir(model_dir), Checkpoint(model_dir), "cpu"
    dtype, device = getattr(torch, config.dtype), torch.device(cpu)
    blocks = -(-longest // _BLOCK)
    pairs = [(i, e) for i in range(config.num_layers) for e in range(config.num_experts)]
    weights = load_decoder(checkpoint, config, dtype, device)
    experts = load_experts(checkpoint, config, pairs, dtype, device)
    load = ExpertLoad(config.num_layers, config.num_experts, config.top_k, blocks * _BLOCK, device)
    mixture = MixtureOfExperts(weights.gates, LocalDispatcher(experts), load)
    rope = Rope(config.head_dim, config.rope_theta, longest, dtype, device)
    cache = KVCache(config, blocks, _BLOCK, dtype, device)
    return Decoder(config, weights, mixture, rope), cache

"""What an attention actor holds of the model.

Shape suffixes: D hidden, V vocabulary, N labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.attention import Attention
from model.experts import AnyExpert
from model.gate import Gate
from model.norm import RMSNorm
from model.projection import Projection


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """A layer without its feed-forward part."""

    input_norm: RMSNorm
    attention: Attention
    ffn_norm: RMSNorm


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """What an attention actor holds of the model: everything but the experts."""

    embedding_VD: torch.Tensor
    layers: tuple[DecoderLayer, ...]
    gates: tuple[Gate, ...]  # a layer each; none in a dense model
    dense_blocks: tuple[AnyExpert, ...]  # a layer each; none where there are experts
    norm: RMSNorm
    head: Projection | None  # none where no tokens are drawn
    num_bytes: int
    score_ND: torch.Tensor | None = None  # of a classifier of N labels, in float32

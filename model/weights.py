"""Which tensors a Mixtral or Mistral checkpoint holds, and which of them each role owns.

Shapes: V vocab, D hidden, F intermediate, E experts, H q heads * head_dim, K kv heads * head_dim.
A matrix that config.json lists in `ranks` is stored as two factors in its place.
"""

from __future__ import annotations

from collections.abc import Iterable

from model.config import ModelConfig
from model.ranks import factor_keys, matrix_name

EMBED_KEY = "model.embed_tokens.weight"
NORM_KEY = "model.norm.weight"
HEAD_KEY = "lm_head.weight"
SCORE_KEY = "score.weight"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape; no lm_head where it is tied or of no use.

    A bare model's keys, which on disk begin behind `model.`, are spelled like all others.
    """
    shapes = attention_shapes(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    for layer in range(config.num_layers):
        for expert in range(config.num_experts):
            w1, w3, w2 = expert_keys(config, layer, expert)
            dense: dict[str, tuple[int, ...]] = {
                w1: (inner, hidden),
                w3: (inner, hidden),
                w2: (hidden, inner),
            }
            shapes |= _as_stored(config, dense)
    return shapes


def stored_keys(config: ModelConfig, keys: Iterable[str]) -> list[str]:
    """Names of the tensors that hold these matrices: themselves, or their factors."""
    stored: list[str] = []
    for key in keys:
        stored += (key,) if config.ranks.get(matrix_name(key)) is None else factor_keys(key)
    return stored


def attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What an attention actor holds: embedding and head [V,D], norms [D], q k v o, gates [E,D].

    A classifier's head is score [labels,D], a bare model has none. Of a dense model, instead of
    gates, the feed-forward blocks: w1 [F,D], w3 [F,D], w2 [D,F].
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBED_KEY: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (q_width, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv_width, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv_width, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, q_width),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
        if config.is_dense:
            w1, w3, w2 = dense_keys(layer)
            shapes |= {w1: (inner, hidden), w3: (inner, hidden), w2: (hidden, inner)}
        else:
            shapes[f"{prefix}.block_sparse_moe.gate.weight"] = (config.num_experts, hidden)
    shapes = _as_stored(config, shapes)
    shapes[NORM_KEY] = (hidden,)
    head = config.head
    if head.task == "classify":
        shapes[SCORE_KEY] = (len(head.labels), hidden)
    elif head.task == "generate" and not config.tie_word_embeddings:
        shapes[HEAD_KEY] = (config.vocab_size, hidden)
    return shapes


def attention_keys(config: ModelConfig) -> list[str]:
    """Names of everything an attention actor holds."""
    return list(attention_shapes(config))


def expert_keys(config: ModelConfig, layer: int, expert: int) -> tuple[str, str, str]:
    """Names of one expert's w1 [F,D], w3 [F,D] and w2 [D,F], in that order."""
    if not (0 <= layer < config.num_layers and 0 <= expert < config.num_experts):
        raise ValueError(
            f"no expert {expert} of layer {layer} in a model of {config.num_layers} layers "
            f"with {config.num_experts} experts each"
        )
    prefix = f"{layer_prefix(layer)}.block_sparse_moe.experts.{expert}"
    return f"{prefix}.w1.weight", f"{prefix}.w3.weight", f"{prefix}.w2.weight"


def dense_keys(layer: int) -> tuple[str, str, str]:
    """Names of a dense model's w1 [F,D], w3 [F,D] and w2 [D,F] in one layer, in that order."""
    prefix = f"{layer_prefix(layer)}.mlp"
    return f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight", f"{prefix}.down_proj.weight"


def layer_prefix(layer: int) -> str:
    """What the names of one layer's tensors begin with."""
    return f"model.layers.{layer}"


def _as_stored(
    config: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The same tensors, with the factors of those that `ranks` lists instead of them."""
    if not config.ranks:
        return shapes
    stored: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        rank = config.ranks.get(matrix_name(key))
        if rank is None:
            stored[key] = shape
        else:
            outputs, inputs = shape
            first, second = factor_keys(key)
            stored |= {first: (rank, inputs), second: (outputs, rank)}
    return stored

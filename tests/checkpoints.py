"""Small random Mixtral and Mistral checkpoints on disk, made by transformers, for the tests."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

import mistral_common
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from transformers import MistralConfig, MixtralConfig

from ops.demo_corpus.tokenizer_files import CHAT_TEMPLATE

PUBLISHED_TOKENIZER = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
PUBLISHED_VOCAB = 32000
SMALLEST_TOKENIZER_VOCAB = 320  # three control pieces, 256 bytes, and some to spell with

_CONTROL_AND_BYTE_PIECES = 3 + 256
_MOST_CHARACTERS = 80
# Greedy tokens must not hang on the order of a sum: weights of variance 1/hidden keep attention
# from amplifying the noise of float32, and a wider head spreads the logits.
_HEAD_SCALE = 3.0


def make_checkpoint(
    directory: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 96,
    experts: int = 4,
    top_k: int = 2,
    vocab: int = 512,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tie: bool = False,
    sliding_window: int | None = None,
    rope_theta: float = 1e6,
    max_positions: int = 4096,
    config_style: Literal["v4", "v5"] = "v5",
    shards: int = 1,
    seed: int = 0,
    eos: int | list[int] = 2,
    head: Literal["ForCausalLM", "Model", "ForSequenceClassification"] = "ForCausalLM",
    **more: Any,
) -> Path:
    """Writes a checkpoint as the published ones are laid out and returns its directory.

    `more` goes into its config.json, as `id2label` does.
    With 0 experts it is a Mistral. A vocabulary of 32000 gets the published tokenizer, a smaller
    one a tokenizer cut down from it to exactly that size; below 320 there is no room for one and
    none is written.
    """
    shape: dict[str, Any] = dict(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocab,
        tie_word_embeddings=tie,
        sliding_window=sliding_window,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        max_position_embeddings=max_positions,
        bos_token_id=1,
        eos_token_id=eos,
        initializer_range=hidden**-0.5,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if experts:
            config = MixtralConfig(num_local_experts=experts, num_experts_per_tok=top_k, **shape)
            model = getattr(transformers, f"Mixtral{head}")(config)
        else:
            model = getattr(transformers, f"Mistral{head}")(MistralConfig(**shape))
    if not tie and head == "ForCausalLM":
        with torch.no_grad():
            model.lm_head.weight.mul_(_HEAD_SCALE)
    model.to(getattr(torch, dtype))
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    single = directory / "model.safetensors"
    tensors = load_file(single)
    block = "block_sparse_moe.experts.0.w1" if experts else "mlp.gate_proj"
    prefix = "" if head == "Model" else "model."
    assert f"{prefix}layers.0.{block}.weight" in tensors, sorted(tensors)[:9]
    if shards > 1:
        single.unlink()
        write_shards(directory, tensors, shards)
    if config_style == "v4":
        _rewrite_config_as_v4(directory / "config.json")
    if vocab >= SMALLEST_TOKENIZER_VOCAB:
        write_tokenizer(directory, vocab)
    return directory


def write_shards(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Writes `tensors` as that many safetensors files of about as many tensors, and their index."""
    keys = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = keys[len(keys) * shard // shards : len(keys) * (shard + 1) // shards]
        save_file({key: tensors[key] for key in own}, directory / name, {"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tokenizer(directory: Path, vocab: int) -> None:
    """Writes a tokenizer.model of exactly `vocab` pieces, with byte fallback; bos is 1, eos 2.

    Its tokenizer_config.json has the chat template of the demo, the Instruct format.
    """
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    target = directory / "tokenizer.model"
    if vocab == PUBLISHED_VOCAB:
        shutil.copyfile(PUBLISHED_TOKENIZER, target)
    else:
        target.write_bytes(_cut_tokenizer(vocab))


@cache
def _cut_tokenizer(vocab: int) -> bytes:
    """The published tokenizer with only its commonest characters and its first merges.

    Whatever it then cannot spell goes to bytes. Its pieces stand in the order of their merges,
    with the single characters, commonest first, behind them all.
    """
    if not SMALLEST_TOKENIZER_VOCAB <= vocab < PUBLISHED_VOCAB:
        raise ValueError(f"no tokenizer of {vocab} pieces can be cut")
    protocol: Any = sentencepiece_model_pb2  # its classes are made at import: no types
    model = protocol.ModelProto()
    model.ParseFromString(PUBLISHED_TOKENIZER.read_bytes())
    pieces = list(model.pieces)
    room = vocab - _CONTROL_AND_BYTE_PIECES
    learned = pieces[_CONTROL_AND_BYTE_PIECES:]
    characters = [piece for piece in learned if len(piece.piece) == 1]
    merges = [piece for piece in learned if len(piece.piece) > 1]
    characters = characters[: max(min(room, _MOST_CHARACTERS), room - len(merges))]
    kept = pieces[:_CONTROL_AND_BYTE_PIECES] + merges[: room - len(characters)] + characters
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.vocab_size = vocab
    data: bytes = model.SerializeToString()
    return data


def _rewrite_config_as_v4(file: Path) -> None:
    """Renames what transformers 5 calls otherwise: rope_parameters, dtype, and a null head_dim."""
    config = json.loads(file.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    if config["head_dim"] is None:
        del config["head_dim"]
    config["transformers_version"] = "4.36.0"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

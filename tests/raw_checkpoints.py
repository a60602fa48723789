"""Mistral's own layouts, made from a Hugging Face checkpoint by the inverse of a conversion.

Written row by row from what RoPE does in either place, and not by the reshapes of the code that is
tested: here a head's row i turns with row i + half, there they are rows 2 i and 2 i + 1.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Layout = Literal["release", "pth", "safetensors"]


def write_raw(source: Path, target: Path, layout: Layout) -> Path:
    """The checkpoint `source` (one model.safetensors) again, as `target`.

    release: eight consolidated.NN.pt, experts packed, and Hugging Face's names in params.json.
    pth, safetensors: one file, experts apart, and mistral-inference's params.json.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    raw = raw_tensors(load_file(source / "model.safetensors"), config, packed=layout == "release")
    if layout == "safetensors":
        save_file({k: v.contiguous() for k, v in raw.items()}, target / "consolidated.safetensors")
    elif layout == "pth":
        torch.save(raw, target / "consolidated.00.pth")
    else:
        parts: list[dict[str, torch.Tensor]] = [{} for _ in range(8)]
        for place, (key, tensor) in enumerate(raw.items()):
            parts[place * 5 % 8][key] = tensor  # neighbours lie in different files
        for number, part in enumerate(parts):
            torch.save(part, target / f"consolidated.{number:02}.pt")
    params = release_params(config) if layout == "release" else inference_params(config)
    (target / "params.json").write_text(json.dumps(params))
    if (source / "tokenizer.model").exists():
        shutil.copyfile(source / "tokenizer.model", target / "tokenizer.model")
    return target


def raw_tensors(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], *, packed: bool
) -> dict[str, torch.Tensor]:
    """Mistral's names, with q and k in its order of rows; experts in one matrix where `packed`."""
    raw: dict[str, torch.Tensor] = {
        "tok_embeddings.weight": tensors["model.embed_tokens.weight"],
        "norm.weight": tensors["model.norm.weight"],
    }
    if "lm_head.weight" in tensors:
        raw["output.weight"] = tensors["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}", f"layers.{layer}"
        raw[f"{theirs}.attention_norm.weight"] = tensors[f"{ours}.input_layernorm.weight"]
        raw[f"{theirs}.ffn_norm.weight"] = tensors[f"{ours}.post_attention_layernorm.weight"]
        for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            weight = tensors[f"{ours}.self_attn.{name}_proj.weight"]
            raw[f"{theirs}.attention.w{name}.weight"] = interleaved(weight, config[heads])
        for name in "vo":
            weight = tensors[f"{ours}.self_attn.{name}_proj.weight"]
            raw[f"{theirs}.attention.w{name}.weight"] = weight
        if config["model_type"] == "mistral":
            for one, other in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                weight = tensors[f"{ours}.mlp.{other}.weight"]
                raw[f"{theirs}.feed_forward.{one}.weight"] = weight
            continue
        block = "block_sparse_moe" if packed else "feed_forward"
        gate = tensors[f"{ours}.block_sparse_moe.gate.weight"]
        raw[f"{theirs}.{block}.gate.weight"] = gate
        for name in ("w1", "w2", "w3"):
            experts = [
                tensors[f"{ours}.block_sparse_moe.experts.{e}.{name}.weight"]
                for e in range(config["num_local_experts"])
            ]
            if packed:
                rows = [one.T if name == "w2" else one for one in experts]
                raw[f"{theirs}.block_sparse_moe.{name}"] = torch.cat(rows)
            else:
                for expert, weight in enumerate(experts):
                    raw[f"{theirs}.feed_forward.experts.{expert}.{name}.weight"] = weight
    return raw


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head so that those which turn together are neighbours."""
    size = len(weight) // heads
    rows = []
    for head in range(heads):
        for pair in range(size // 2):
            rows += [head * size + pair, head * size + pair + size // 2]
    return weight[rows]


def inference_params(config: dict[str, Any]) -> dict[str, Any]:
    """params.json as mistral-inference reads it."""
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": head_dim(config),
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": config["rope_parameters"]["rope_theta"],
    }
    if config.get("sliding_window"):
        params["sliding_window"] = config["sliding_window"]
    if "num_local_experts" in config:
        top_k, experts = config["num_experts_per_tok"], config["num_local_experts"]
        params["moe"] = {"num_experts_per_tok": top_k, "num_experts": experts}
    return params


def release_params(config: dict[str, Any]) -> dict[str, Any]:
    """params.json in Hugging Face's names, the window as the text that published ones have."""
    same = (
        "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "vocab_size", "num_local_experts",
        "num_experts_per_tok",
    )  # fmt: skip
    params = {key: config[key] for key in same if key in config}
    params["head_dim"] = head_dim(config)
    params["rope_theta"] = config["rope_parameters"]["rope_theta"]
    if config.get("sliding_window"):
        params["sliding_window"] = str(config["sliding_window"])
    return params


def head_dim(config: dict[str, Any]) -> int:
    """Given, or the hidden size per head."""
    return int(config["head_dim"] or config["hidden_size"] // config["num_attention_heads"])

"""Checkpoints with low-rank matrices in the published layout, and transformers as their oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

SINGLE_FILE = "model.safetensors"


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whatever files they lie in."""
    tensors: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= {key: value.clone() for key, value in load_file(file).items()}
    return tensors


def make_low_rank(directory: Path, ranks: Mapping[str, int]) -> Path:
    """Replace the listed matrices of a checkpoint in one file by two factors each; config.json."""
    tensors = tensors_of(directory)
    for name, rank in ranks.items():
        weight = tensors.pop(f"{name}.weight")
        u, s, v = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        first, second = s[:rank, None] * v[:rank], u[:, :rank]
        for index, factor in enumerate((first, second)):
            tensor = torch.from_numpy(np.ascontiguousarray(factor)).to(weight.dtype)
            tensors[f"{name}.{index}.weight"] = tensor
    save_file(tensors, directory / SINGLE_FILE, {"format": "pt"})
    write_ranks(directory, ranks)
    return directory


def write_ranks(directory: Path, ranks: Any) -> None:
    """Put `ranks` into config.json, and what the published one has beside them."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    auto_map = {"AutoModelForCausalLM": "yaya-sy/minixtral--modeling_mixtral.MixtralForCausalLM"}
    file.write_text(json.dumps(config | {"ranks": ranks, "auto_map": auto_map}))


def _linear(ranks: Mapping[str, int], name: str, inputs: int, outputs: int) -> nn.Module:
    """One layer, or where a rank is listed two in turn: no biases."""
    if name not in ranks:
        return nn.Linear(inputs, outputs, bias=False)
    rank = ranks[name]
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False))


class _Expert(nn.Module):
    def __init__(self, ranks: Mapping[str, int], name: str, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = _linear(ranks, f"{name}.w1", hidden, inner)
        self.w2 = _linear(ranks, f"{name}.w2", inner, hidden)
        self.w3 = _linear(ranks, f"{name}.w3", hidden, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return out


class _Experts(nn.ModuleList):
    """A layer's experts by the names they have on disk; transformers 5 fuses them in memory."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        for index, expert in enumerate(self):
            rows, places = torch.where(ids == index)
            y.index_add_(0, rows, expert(x[rows]) * weights[rows, places, None].to(x.dtype))
        return y


def load_low_rank(directory: Path) -> Any:
    """The checkpoint in transformers in float32, its listed layers as two: every key must fit."""
    config = AutoConfig.from_pretrained(directory)
    ranks = json.loads((directory / "config.json").read_text())["ranks"]
    model: Any = AutoModelForCausalLM.from_config(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    for index, layer in enumerate(model.model.layers):
        prefix = f"model.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            old = getattr(layer.self_attn, name)
            new = _linear(ranks, f"{prefix}.self_attn.{name}", old.in_features, old.out_features)
            setattr(layer.self_attn, name, new)
        if config.model_type == "mixtral":
            experts = (
                _Expert(ranks, f"{prefix}.block_sparse_moe.experts.{e}", hidden, inner)
                for e in range(config.num_local_experts)
            )
            layer.mlp.experts = _Experts(experts)
        else:
            for name in ("gate_proj", "up_proj", "down_proj"):
                old = getattr(layer.mlp, name)
                new = _linear(ranks, f"{prefix}.mlp.{name}", old.in_features, old.out_features)
                setattr(layer.mlp, name, new)
    tensors = {
        key.replace("block_sparse_moe", "mlp"): value
        for key, value in tensors_of(directory).items()
    }
    model.load_state_dict(tensors, strict=True)
    return model.float().eval()

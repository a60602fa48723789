"""Checkpoints as transformers saves them with bitsandbytes, and the dense ones they stand for."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import load_file, save_file

# A name of the tests, and what transformers writes beside `quant_method` for it.
KINDS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4-nested": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True,
    },
}  # fmt: skip

_DEFAULTS = {
    "quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False,
    "_load_in_4bit": False, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False, "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0,
}  # fmt: skip


def linear_layers(key: str) -> bool:
    """What transformers quantizes unless told otherwise: every linear layer but the head."""
    return key.startswith("model.layers.") and key.endswith(("proj.weight", "w1.weight",
        "w2.weight", "w3.weight", "gate.weight"))  # fmt: skip


def linear_layers_without_gates(key: str) -> bool:
    """The same with the gates skipped."""
    return linear_layers(key) and not key.endswith(".gate.weight")


def quantize_checkpoint(
    source: Path,
    target: Path,
    kind: str,
    converted: Callable[[str], bool] = linear_layers_without_gates,
    **config: Any,
) -> Path:
    """Writes `source` to `target` with its linear layers as bitsandbytes quantizes them."""
    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors: dict[str, torch.Tensor] = {}
        for key, weight in load_file(file).items():
            tensors |= _quantized(key, weight, kind) if converted(key) else {key: weight}
        save_file(tensors, file, metadata={"format": "pt"})
    index = target / "model.safetensors.index.json"
    if index.exists():
        weight_map = {
            key: file.name for file in target.glob("*.safetensors") for key in load_file(file)
        }
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    written = {f"_{key}": value for key, value in KINDS[kind].items() if key.startswith("load")}
    _edit_config(target, {"quantization_config": _DEFAULTS | KINDS[kind] | written | config})
    return target


def dequantize_checkpoint(source: Path, target: Path) -> Path:
    """Writes what `source`, of one file, stands for: dense, in fp32, by bitsandbytes."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    stored = load_file(file)
    dense = {}
    for key, weight in stored.items():
        if weight.dtype == torch.int8:
            scales = stored[key.removesuffix("weight") + "SCB"]
            dense[key] = bnb.int8_vectorwise_dequant(weight, scales)
        elif weight.dtype == torch.uint8 and key.endswith(".weight"):
            parts = {
                name.removeprefix(f"{key}."): value.clone()
                for name, value in stored.items()
                if name.startswith(f"{key}.")
            }
            dense[key] = restore_4bit(weight, bnb.QuantState.from_dict(parts, weight.device))
        elif weight.is_floating_point() and key.endswith(("weight", "bias")):
            dense[key] = weight.float()
    save_file(dense, file, metadata={"format": "pt"})
    _edit_config(target, {"dtype": "float32", "quantization_config": None})
    return target


def restore_4bit(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """What 4-bit weights stand for by the definition of the format, [O, I] in fp32."""
    absmax = state.absmax
    if state.nested:
        scale = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(absmax)]
        absmax = state.state2.code[absmax.int()] * scale + state.offset
    count = math.prod(state.shape)
    nibbles = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[:count]
    scales = absmax.repeat_interleave(state.blocksize)[:count]
    dense_OI: torch.Tensor = (state.code[nibbles.int()] * scales).view(state.shape)
    return dense_OI


def _quantized(key: str, weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    if kind == "int8":
        numbers, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
        module = key.removesuffix("weight")
        form = torch.tensor(0, dtype=torch.uint8)
        return {key: numbers, f"{module}SCB": scales, f"{module}weight_format": form}
    quant_type, _, nested = kind.partition("-")
    packed, state = bnb.quantize_4bit(
        weight, quant_type=quant_type, compress_statistics=bool(nested)
    )
    parts = {f"{key}.{name}": value for name, value in state.as_dict(packed=True).items()}
    return {key: packed, **parts}


def _edit_config(directory: Path, changes: dict[str, Any]) -> None:
    file = directory / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

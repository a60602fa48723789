"""Tiny checkpoints in Mistral's own layouts, and the Hugging Face ones they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import make_checkpoint
from tests.raw_checkpoints import Layout, write_raw

TINY: dict[str, Any] = {
    "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn": 24, "experts": 3,
    "top_k": 2, "vocab": 32, "max_positions": 32768,
}  # fmt: skip
LAYOUTS: tuple[Layout, ...] = ("release", "pth", "safetensors")


def make_raw(directory: Path, layout: Layout, **shape: Any) -> tuple[Path, Path]:
    """A Hugging Face checkpoint, and the same in a raw layout."""
    source = make_checkpoint(directory / "hf", **(TINY | shape))
    return source, write_raw(source, directory / "raw", layout)


def resave(file: Path, change: Any) -> None:
    """Write a file of torch.save again, with `change` applied to its tensors."""
    tensors = torch.load(file)
    change(tensors)
    torch.save(tensors, file)

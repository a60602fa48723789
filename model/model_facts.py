"""What a checkpoint is, from its configuration and headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.raw_files import is_raw


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A checkpoint that fits its configuration, and how it is stored."""

    directory: Path
    config: ModelConfig
    layout: str
    num_files: int
    stored_bytes: int
    stored_dtypes: dict[str, int]  # tensors of each, as safetensors spells it

    @property
    def architecture(self) -> str:
        """As transformers calls it."""
        return "MistralForCausalLM" if self.config.is_dense else "MixtralForCausalLM"


def read_facts(directory: Path) -> ModelFacts:
    """Look at a checkpoint directory, and compare every tensor's name and shape.

    Raises:
        ValueError: no such directory, or what `ModelConfig` and `Checkpoint` refuse.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; a checkpoint directory is needed")
    config = ModelConfig.from_dir(directory)
    checkpoint = Checkpoint(directory)
    checkpoint.verify(config)
    entries = checkpoint.entries.values()
    return ModelFacts(
        directory=directory,
        config=config,
        layout="Mistral's own" if is_raw(directory) else "Hugging Face",
        num_files=len({entry.file for entry in entries}),
        stored_bytes=sum(entry.size_bytes for entry in entries),
        stored_dtypes=dict(Counter(entry.dtype for entry in entries)),
    )

"""What a checkpoint is, from its configuration and headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.model_sizes import BITS, RoleBytes, role_bytes
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

    by_key: Mapping[str, int]  # stored bytes of a tensor with all that belongs to it

    @property
    def architecture(self) -> str:
        """As transformers calls it."""
        return self.config.head.architecture

    def roles(self) -> dict[str, RoleBytes]:
        """What each role holds, by how the weights are served: as they are, int8 or int4.

        What is stored in few bits is served in these alone.
        """
        config, dtype = self.config, self.config.dtype
        if config.bitsandbytes is not None:
            return {"none": role_bytes(config, dtype, stored=self.by_key.__getitem__)}
        return {name: role_bytes(config, dtype, bits) for name, bits in BITS.items()}


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
        by_key={key: checkpoint.total_bytes([key]) for key in checkpoint.entries},
    )

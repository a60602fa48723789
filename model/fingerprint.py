"""What tells the weights of one model from another's, without reading them all."""

from __future__ import annotations

import hashlib

from model.checkpoint import Checkpoint
from model.config_values import config_file
from model.shards import CheckpointError, sample_of

_HEX_DIGITS = 12


def weights_fingerprint(model_dir: str, precision: str) -> str:
    """Hex digits that are the same only where the same tokens follow the same prompt.

    `precision` says how weights are rounded. Of the directory's name, its config file, and of each
    tensor its place and 256 bytes from its middle: training moves them all, and a thousand short
    reads take no time. Weights that were copied to another directory count as others.

    Raises:
        CheckpointError: a file is missing, cut short, or cannot be read.
    """
    checkpoint = Checkpoint(model_dir)
    digest = hashlib.blake2b(f"{model_dir}\0{precision}\0".encode())
    try:
        digest.update(config_file(model_dir).read_bytes())
        for key in checkpoint.in_file_order(checkpoint.entries):
            entry = checkpoint.entries[key]
            digest.update(f"\0{key}\0{entry.dtype}\0{entry.shape}\0".encode())
            digest.update(sample_of(entry))
    except OSError as error:
        raise CheckpointError(f"{model_dir}: cannot be read: {error}") from error
    return digest.hexdigest()[:_HEX_DIGITS]


def commit_fingerprint(name: str, commit: str, precision: str) -> str:
    """The same of a model on the hub, where a commit's files never change."""
    digest = hashlib.blake2b(f"{name}@{commit}\0{precision}".encode())
    return digest.hexdigest()[:_HEX_DIGITS]

"""The bitsandbytes library, imported only by who serves a checkpoint that needs it."""

from __future__ import annotations

import functools
import importlib.util
import logging
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.config_file import ConfigError

# They tell that an optional package is missing, and of a conversion on every product.
_TALKATIVE = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")


def require_library(model_dir: str, config: ModelConfig) -> None:
    """Refuse a checkpoint that needs bitsandbytes where it is not installed; imports nothing.

    Raises:
        ConfigError: names the file, and what to install.
    """
    if config.bitsandbytes is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{Path(model_dir) / 'config.json'}: quantization_config.quant_method is "
            "'bitsandbytes', which is not installed; pip install 'windrose[bitsandbytes]'"
        )


@functools.cache
def load_library() -> Any:
    """The library; its import takes seconds."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes

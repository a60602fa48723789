"""What config.json says of weights that transformers saved through bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_THRESHOLD = 6.0  # transformers' own, where the file gives none


class BitsAndBytes(BaseModel):
    """How projections are stored: 4 bits (nf4 or fp4, each matrix says which) or LLM.int8's 8."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    bits: Literal[4, 8]
    threshold: float = Field(default=_THRESHOLD, ge=0)  # inputs from here on stay in 16 bits; 0: no


def read_bitsandbytes(raw: Mapping[str, Any]) -> BitsAndBytes | None:
    """The `quantization_config` of a config.json; None where there is none.

    Raises:
        ValueError: another method, or a way of storing that is not supported; names the key.
    """
    found = raw.get("quantization_config")
    if not found:
        return None
    name = "quantization_config"
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {found!r}; an object is needed")
    in_4bit, in_8bit = (
        found.get(key, found.get(f"_{key}", False)) for key in ("load_in_4bit", "load_in_8bit")
    )
    # The first checkpoints named no method.
    method = found.get("quant_method", "bitsandbytes" if in_4bit or in_8bit else None)
    if method is None:
        raise ValueError(f"{name} is {found!r}: it has no quant_method")
    if method != "bitsandbytes":
        raise ValueError(f"{name}.quant_method is {method!r}; only 'bitsandbytes' is supported")
    if (in_4bit is True) == (in_8bit is True):
        raise ValueError(
            f"{name}: load_in_4bit is {in_4bit!r} and load_in_8bit is {in_8bit!r}; "
            "one of them must be true"
        )
    only = (
        ("bnb_4bit_quant_type", ("nf4", "fp4"))
        if in_4bit
        else ("llm_int8_has_fp16_weight", (False,)),
        ("bnb_4bit_quant_storage", ("uint8",)),
    )
    for key, supported in only:
        value = found.get(key, supported[0])
        if value not in supported:
            listed = " or ".join(map(repr, supported))
            raise ValueError(f"{name}.{key} is {value!r}; only {listed} is supported")
    threshold = found.get("llm_int8_threshold", _THRESHOLD)
    if type(threshold) not in (int, float) or not 0 <= threshold < float("inf"):
        raise ValueError(f"{name}.llm_int8_threshold is {threshold!r}; a number is needed")
    return BitsAndBytes(bits=4 if in_4bit else 8, threshold=float(threshold))

"""Which tensors stand for one matrix that bitsandbytes has quantized, and of which shapes.

With 4 bits `X.weight` is U8 [(O*I+1)//2, 1], two weights to a byte, beside `X.weight.absmax`
[blocks], `X.weight.quant_map` [16] and `X.weight.quant_state.bitsandbytes__nf4` (or fp4), a JSON
text. Where absmax was quantized in turn it is U8, beside `nested_absmax` and `nested_quant_map`
[256]. With 8 bits `X.weight` is I8 [O, I], beside `X.SCB` [O] and `X.weight_format`, a number.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.shards import TensorEntry

_STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
_OF_WEIGHT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *_STATES)
_OF_MODULE = ("SCB", "weight_format")

Entries = Mapping[str, TensorEntry]


def is_quantized(entry: TensorEntry) -> bool:
    """Whether a weight is stored so; the modules that were left out hold plain tensors."""
    return entry.dtype in ("U8", "I8")


def parts_of(key: str, entries: Entries) -> dict[str, str]:
    """The tensors that belong to the weight `key`, by the last part of their names."""
    module = key.removesuffix("weight")
    names = {part: f"{key}.{part}" for part in _OF_WEIGHT}
    names |= {part: f"{module}{part}" for part in _OF_MODULE}
    return {part: name for part, name in names.items() if name in entries}


def whole_of(part: str) -> str:
    """The key of the weight that a part belongs to; of anything else the key itself."""
    module, _, name = part.rpartition(".")
    if name in _OF_MODULE:
        return f"{module}.weight"
    for of_weight in _OF_WEIGHT:  # one has a dot
        if part.endswith(f".weight.{of_weight}"):
            return part.removesuffix(f".{of_weight}")
    return part


def state_part(parts: Mapping[str, str]) -> str | None:
    """Which of the parts is the JSON text; None where there is none."""
    return next((part for part in _STATES if part in parts), None)


def faults_of(key: str, shape: tuple[int, ...], entries: Entries, bits: int) -> list[str]:
    """What is wrong with a quantized weight of `shape` [O, I], as far as headers show it."""
    return _faults_4(key, shape, entries) if bits == 4 else _faults_8(key, shape, entries)


def _faults_4(key: str, shape: tuple[int, ...], entries: Entries) -> list[str]:
    parts = parts_of(key, entries)
    outputs, inputs = shape
    nested = "nested_absmax" in parts
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "absmax": ("U8" if nested else "F32", (None,)),
        "quant_map": ("F32", (16,)),
    }
    if nested:
        expected |= {"nested_absmax": ("F32", (None,)), "nested_quant_map": ("F32", (256,))}
    faults = [_fault(key, entries[key], "U8", ((outputs * inputs + 1) // 2, 1))]
    faults += [_part_fault(key, part, entries, *wanted) for part, wanted in expected.items()]
    state = state_part(parts)
    if state is None:
        faults.append(f"{entries[key].file}: {key}.{_STATES[0]} (or fp4): missing")
    else:
        faults.append(_part_fault(key, state, entries, "U8", (None,)))
    return [fault for fault in faults if fault is not None]


def _faults_8(key: str, shape: tuple[int, ...], entries: Entries) -> list[str]:
    faults = [
        _fault(key, entries[key], "I8", shape),
        _part_fault(key, "SCB", entries, "F32", (shape[0],)),
    ]
    return [fault for fault in faults if fault is not None]


def _part_fault(
    key: str, part: str, entries: Entries, dtype: str, shape: tuple[int | None, ...]
) -> str | None:
    name = f"{key.removesuffix('weight')}{part}" if part in _OF_MODULE else f"{key}.{part}"
    entry = entries.get(name)
    if entry is None:
        return f"{entries[key].file}: {name}: missing, and {key} cannot be read without it"
    return _fault(name, entry, dtype, shape)


def _fault(name: str, entry: TensorEntry, dtype: str, shape: tuple[int | None, ...]) -> str | None:
    if entry.dtype != dtype:
        return f"{entry.file}: {name}: dtype is {entry.dtype}; {dtype} is needed"
    if len(entry.shape) != len(shape) or any(
        wanted is not None and found != wanted for found, wanted in zip(entry.shape, shape)
    ):
        wanted_shape = ["any" if size is None else size for size in shape]
        return f"{entry.file}: {name}: expected shape {wanted_shape}, found {list(entry.shape)}"
    return None

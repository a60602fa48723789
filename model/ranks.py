"""Which weight matrices a checkpoint stores as two factors, and of which rank.

config.json has it as `ranks`, the way yaya-sy/minixtral is published: for a listed matrix there is
a pair of linear layers without bias, `NAME.0.weight` [rank, inputs] and then `NAME.1.weight`
[outputs, rank].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_WEIGHT = ".weight"
_EXPERT = ("w1", "w2", "w3")


class Ranks(Mapping[str, int]):
    """Rank by name of a matrix, such as `model.layers.0.block_sparse_moe.experts.3.w1`. Frozen."""

    __slots__ = ("_by_name",)

    def __init__(self, by_name: Mapping[str, int] | None = None) -> None:
        self._by_name = dict(by_name or {})

    def __getitem__(self, name: str) -> int:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __hash__(self) -> int:
        return hash(frozenset(self._by_name.items()))

    def __repr__(self) -> str:
        return f"Ranks({self._by_name!r})"


def read_ranks(value: Any) -> Ranks:
    """What config.json has as `ranks`; None is none.

    Raises:
        ValueError: no object of whole numbers from 1 on; names the key within it.
    """
    if value is None:
        return Ranks()
    if not isinstance(value, dict):
        raise ValueError(f"ranks is {value!r}; an object is needed")
    for name, rank in value.items():
        if type(rank) is not int or rank < 1:  # bool is an int to isinstance
            raise ValueError(f"ranks[{name!r}] is {rank!r}; a whole number from 1 on is needed")
    return Ranks(value)


def refuse_unknown(ranks: Mapping[str, int], *, layers: int, experts: int) -> None:
    """Check the names against a model of so many layers and experts a layer; 0: a dense one.

    Raises:
        ValueError: names the first that is no matrix which can be stored as factors.
    """
    if not ranks:
        return
    known = set(matrix_names(layers, experts))
    for name in ranks:
        if name not in known:
            raise ValueError(
                f"ranks names {name!r}, which is no projection of attention or of an expert in a "
                f"model of {layers} layers with {experts} experts each"
            )


def matrix_names(layers: int, experts: int) -> Iterator[str]:
    """Names of all matrices that may be stored as factors."""
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield from (f"{prefix}.self_attn.{name}_proj" for name in "qkvo")
        if not experts:
            yield from (f"{prefix}.mlp.{name}_proj" for name in ("gate", "up", "down"))
        for expert in range(experts):
            yield from (f"{prefix}.block_sparse_moe.experts.{expert}.{name}" for name in _EXPERT)


def matrix_name(key: str) -> str:
    """The name of a matrix, from the key under which it is stored dense."""
    return key.removesuffix(_WEIGHT)


def factor_keys(key: str) -> tuple[str, str]:
    """Keys of a matrix's factors: [rank, inputs], which comes first, and [outputs, rank]."""
    name = matrix_name(key)
    return f"{name}.0{_WEIGHT}", f"{name}.1{_WEIGHT}"

"""`windrose inspect`: what a checkpoint is, what each role holds, which topologies would fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.model_facts import ModelFacts, read_facts
from model.model_sizes import Fit, count_parameters, kv_token_bytes, topologies

GIB = 1 << 30
_DEFAULT_MEMORY_BYTES = tuple(size * GIB for size in (16, 24, 40, 48, 80, 139))
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def run_inspect(directory: Path, memory_bytes: Sequence[int] | None, *, as_json: bool) -> int:
    """Print what headers and configuration tell.

    Raises:
        ValueError: as `read_facts`.
    """
    facts = read_facts(directory)
    sizes = tuple(memory_bytes or _DEFAULT_MEMORY_BYTES)
    if as_json:
        print(json.dumps(_as_json(facts, sizes), indent=2))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    for table in (_facts_table(facts), _roles_table(facts), _fits_table(facts, sizes)):
        console.print(table)
        console.print()
    console.print(_FITS_NOTE)
    return 0


def _as_json(facts: ModelFacts, memory_bytes: Sequence[int]) -> dict[str, Any]:
    config = facts.config
    return {
        "model": str(facts.directory),
        "architecture": facts.architecture,
        "layout": facts.layout,
        "files": facts.num_files,
        "stored_bytes": facts.stored_bytes,
        "stored_dtypes": facts.stored_dtypes,
        "config": config.model_dump(mode="json"),
        "parameters": asdict(count_parameters(config)),
        "kv_bytes_per_token": kv_token_bytes(config, config.dtype),
        "role_bytes": {
            name: asdict(roles) | {"all_experts": roles.all_experts}
            for name, roles in facts.roles().items()
        },
        "topologies": [
            {
                "memory_per_device_bytes": size,
                "quantization": name,
                "expert_actors": [
                    asdict(fit) for fit in topologies(config, config.dtype, size, roles)
                ],
            }
            for size in memory_bytes
            for name, roles in facts.roles().items()
        ],
    }


def _facts_table(facts: ModelFacts) -> Table:
    config, parameters = facts.config, count_parameters(facts.config)
    table = _table("", "")
    table.show_header = False
    dtypes = ", ".join(sorted(facts.stored_dtypes))
    window = config.sliding_window
    rows = {
        "model": str(facts.directory),
        "architecture": facts.architecture,
        "stored": f"{facts.layout} layout, {facts.num_files} file(s), "
        f"{_shown(facts.stored_bytes)}, {dtypes}",
        "served as": config.dtype,
        "layers": f"{config.num_layers} of width {config.hidden_size}",
        "attention": f"{config.num_heads} heads of {config.head_dim}, "
        f"{config.num_kv_heads} for keys and values",
        "feed-forward": f"width {config.intermediate_size}"
        + ("" if config.is_dense else f", {config.num_experts} experts, top-{config.top_k}"),
        "vocabulary": f"{config.vocab_size}"
        + (", head tied to the embedding" if config.tie_word_embeddings else ""),
        "context": f"{config.max_position_embeddings}, "
        + (f"sliding window {window}" if window else "no sliding window"),
        "parameters": f"{_count(parameters.total)}"
        + ("" if config.is_dense else f", {_count(parameters.active)} for a token"),
        "KV cache": f"{_shown(kv_token_bytes(config, config.dtype))} a token",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _roles_table(facts: ModelFacts) -> Table:
    config = facts.config
    by_name = facts.roles()
    table = _table("weights held", *(_weights(facts, name) for name in by_name))
    held = list(by_name.values())
    table.add_row("an attention actor, without experts", *(_shown(one.attention) for one in held))
    if not config.is_dense:
        table.add_row("the largest expert of a layer", *(_shown(one.expert) for one in held))
        table.add_row("the largest of all layers", *(_shown(max(one.by_expert)) for one in held))
        table.add_row("all experts", *(_shown(one.all_experts) for one in held))
        table.add_row("everything", *(_shown(one.attention + one.all_experts) for one in held))
    return table


def _fits_table(facts: ModelFacts, memory_bytes: Sequence[int]) -> Table:
    config = facts.config
    table = _table("memory per device", "weights", "E that fit", "KV tokens, E = 0", "E > 0")
    for size in memory_bytes:
        for name, roles in facts.roles().items():
            found = topologies(config, config.dtype, size, roles)
            table.add_row(
                _shown(size) if name == "none" else "",
                _weights(facts, name),
                _numbers([fit.num_expert for fit in found if fit.fits]),
                _room([fit for fit in found if not fit.num_expert]),
                _room([fit for fit in found if fit.num_expert]),
            )
    return table


def _numbers(numbers: Sequence[int]) -> str:
    """0, 2-8: those that follow each other as one range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(shown) or "none"


def _room(found: Sequence[Fit]) -> str:
    """Tokens that an attention actor's cache holds; the same for every E above 0."""
    return next((f"{fit.kv_tokens:,}" for fit in found if fit.fits), "-")


def _weights(facts: ModelFacts, name: str) -> str:
    """How the weights are served."""
    if name != "none":
        return name
    return facts.config.dtype if facts.config.bitsandbytes is None else "as stored"


_FITS_NOTE = """\
Topologies (A, E) that fit, each actor on a device of its own, for any A from 1 on, and the
tokens that each attention actor's KV cache holds. Weights take at most 90 % of a device, the cache
80 % of what they leave."""


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, no_wrap=True)
    return table


def _shown(count: float) -> str:
    """Bytes in the largest unit that leaves at least one."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"

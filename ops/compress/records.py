"""What an interrupted compression left behind, so that the same command can take it up again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATE_FILE = "compress.state.json"


@dataclass(frozen=True, slots=True)
class Missed:
    """Of one matrix: what its factors miss, and what there was, both squared Frobenius norms."""

    squared_error: float
    squared_norm: float


@dataclass(slots=True)
class Record:
    """What a run is to do, and what it has done: kept in the target until all is written."""

    asked: Mapping[str, object]  # the settings and the source's fingerprint
    ranks: dict[str, int | None]
    missed: dict[str, Missed] = field(default_factory=dict)

    def save(self, target: Path) -> None:
        """Replace the file in one step."""
        part = target / f"{STATE_FILE}.part"
        part.write_text(json.dumps(asdict(self)))
        part.rename(target / STATE_FILE)


def open_target(target: Path, asked: Mapping[str, object]) -> Record | None:
    """Make the directory; what an earlier run of the same settings left there, if one did.

    Raises:
        FileExistsError: something else is there.
    """
    state = target / STATE_FILE
    if state.is_file():
        kept = json.loads(state.read_text())
        if kept["asked"] == dict(asked):
            missed = {name: Missed(**one) for name, one in kept["missed"].items()}
            return Record(asked, kept["ranks"], missed)
        raise FileExistsError(
            f"{target}: holds an unfinished compression with other settings or of other weights; "
            "remove it first"
        )
    begun = {STATE_FILE, f"{STATE_FILE}.part"}  # all there is where the first word was cut short
    if target.exists() and (
        not target.is_dir() or any(file.name not in begun for file in target.iterdir())
    ):
        raise FileExistsError(f"{target}: exists already, and is not overwritten")
    target.mkdir(parents=True, exist_ok=True)
    return None

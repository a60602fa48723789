"""From a Mixtral's checkpoint to one whose experts are factors, a few matrices in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.config_file import read_object
from model.fingerprint import weights_fingerprint
from model.ranks import factor_keys
from model.raw_files import is_raw
from model.shards import CheckpointError
from model.weights import expert_keys
from ops.compress.allocation import Shape, Spectrum, parameters_at, same_rank, spend
from ops.compress.factorize import factorize, spectrum, squared_norm
from ops.compress.perplexity import Windows, perplexity, read_windows
from ops.compress.records import STATE_FILE, Missed, Record, open_target
from ops.compress.report import CompressReport, PerplexityReport, layer_reports
from ops.compress.settings import CompressSettings
from ops.compress.writer import (
    ShardPlan,
    ShardWriter,
    TensorPlan,
    Unit,
    plan_shards,
    write_index,
)

# As published: with trust_remote_code, transformers runs the modelling code of that repository.
_AUTO_MAP = {"AutoModelForCausalLM": "yaya-sy/minixtral--modeling_mixtral.MixtralForCausalLM"}
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "generation_config.json",
)  # fmt: skip


T = TypeVar("T")


class Watcher(Protocol):
    """Is told how far a phase of the work is."""

    def phase(self, name: str, steps: int) -> None:
        """A phase of so many steps begins."""
        ...

    def advance(self) -> None:
        """One of its steps is done."""
        ...


def compress(settings: CompressSettings, watcher: Watcher) -> CompressReport:
    """Write the target directory; config.json comes last, so that half of one is none.

    Raises:
        ValueError: SRC cannot be compressed as asked; names the file and key, or the option.
        FileExistsError: DST is there already.
    """
    began_s = perf_counter()
    run = _Compression(settings, watcher)
    windows = None if settings.text is None else read_windows(settings.text, settings.source)
    kept = open_target(settings.target, run.asked)
    record = kept or Record(run.asked, run.choose_ranks())
    record.save(settings.target)
    before = run.perplexity(settings.source, windows)
    shards = run.write(record)
    write_index(settings.target, shards)
    run.copy_files()
    run.write_config(record.ranks)
    Checkpoint(settings.target).verify(ModelConfig.from_dir(settings.target))
    (settings.target / STATE_FILE).unlink()
    after = run.perplexity(settings.target, windows)
    measured = None
    if before is not None and after is not None and windows is not None:
        measured = PerplexityReport(before, after, windows.num_predicted)
    removed = parameters_at(run.shapes, dict.fromkeys(run.shapes)) - parameters_at(
        run.shapes, record.ranks
    )
    return CompressReport(
        source=str(settings.source),
        target=str(settings.target),
        parameters_before=run.parameters,
        parameters_after=run.parameters - removed,
        parameters_removed=removed,
        layers=layer_reports(run.shapes, record.ranks, record.missed),
        perplexity=measured,
        took_s=perf_counter() - began_s,
    )


class _Compression:
    """The matrices of one checkpoint that are to become factors."""

    def __init__(self, settings: CompressSettings, watcher: Watcher) -> None:
        self._settings = settings
        self._watcher = watcher
        self._config = ModelConfig.from_dir(settings.source)
        if self._config.is_dense:
            raise ValueError(f"{settings.source}: a dense model, without experts to compress")
        if self._config.ranks:
            raise ValueError(f"{settings.source}: compressed already: config.json has ranks")
        if self._config.bitsandbytes:
            raise ValueError(f"{settings.source}: quantized: compress the weights it was made of")
        if is_raw(settings.source):
            raise ValueError(
                f"{settings.source}: in Mistral's own layout: `windrose convert` it first"
            )
        self._checkpoint = Checkpoint(settings.source)
        self._checkpoint.verify(self._config)
        entries = self._checkpoint.entries
        self._keys = {key.removesuffix(".weight"): key for key in self._chosen()}
        self.shapes = {name: Shape(*entries[key].shape) for name, key in self._keys.items()}
        self.parameters = sum(torch.Size(entry.shape).numel() for entry in entries.values())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device if settings.device == "auto" else settings.device)
        asked = {key: value for key, value in asdict(settings).items() if key != "text"}
        self.asked = json.loads(json.dumps(asked, default=str)) | {
            "fingerprint": weights_fingerprint(str(settings.source), "")
        }

    def _chosen(self) -> Iterator[str]:
        count = self._config.num_layers
        layers = self._settings.layers
        for layer in range(count) if layers is None else layers:
            if layer >= count:
                raise ValueError(f"--layers: there is no layer {layer}; the model has {count}")
            for expert in range(self._config.num_experts):
                yield from expert_keys(self._config, layer, expert)

    def choose_ranks(self) -> dict[str, int | None]:
        """What each matrix gets; reads all of them where the spectra decide."""
        settings = self._settings
        if settings.rank is not None:
            ranks = same_rank(self.shapes, settings.rank)
            if not any(ranks.values()):
                raise ValueError(f"--rank {settings.rank}: makes none of the matrices smaller")
            return ranks
        dense = parameters_at(self.shapes, dict.fromkeys(self.shapes))
        removed = settings.remove_params or round((settings.ratio or 0) * self.parameters)
        most = dense - parameters_at(self.shapes, same_rank(self.shapes, settings.step))
        if removed > most:
            raise ValueError(
                f"{removed:,} parameters cannot be removed: rank {settings.step} in every matrix "
                f"of these layers removes {most:,} of {self.parameters:,}"
            )
        spectra: dict[str, Spectrum] = {}
        self._watcher.phase("spectra", len(self._keys))
        names = {key: name for name, key in self._keys.items()}
        for key, weight in self._checkpoint.read_each(names):
            spectra[names[key]] = self._tried(key, weight, spectrum)
            self._watcher.advance()
        return spend(spectra, dense - removed, settings.step)

    def perplexity(self, model_dir: Path, windows: Windows | None) -> float | None:
        """Of the text, where one was given."""
        if windows is None:
            return None
        which = "before" if model_dir == self._settings.source else "after"
        self._watcher.phase(f"perplexity {which}", len(windows.token_ids))
        return perplexity(model_dir, windows, self._watcher.advance)

    def write(self, record: Record) -> tuple[ShardPlan, ...]:
        """Write what is not there yet of the shards; fills in `record.missed`."""
        target = self._settings.target
        order = self._checkpoint.in_file_order(self._checkpoint.entries)
        units = [self._unit(key, record.ranks) for key in order]
        shards = plan_shards(units, self._settings.shard_bytes)
        self._watcher.phase("writing", len(units))
        for shard in shards:
            if (target / shard.name).exists():
                for _ in shard.units:
                    self._watcher.advance()
                continue
            with ShardWriter(target, shard) as writer:
                for number, unit in enumerate(shard.units):
                    if number >= writer.num_kept:
                        writer.write(self._made(unit.source, record))
                    self._watcher.advance()
        return shards

    def _unit(self, key: str, ranks: Mapping[str, int | None]) -> Unit:
        entry = self._checkpoint.entries[key]
        rank = ranks.get(key.removesuffix(".weight"))
        if rank is None:
            return Unit(key, (TensorPlan(key, entry.dtype, entry.shape),))
        outputs, inputs = entry.shape
        first, second = factor_keys(key)
        return Unit(
            key,
            (
                TensorPlan(first, entry.dtype, (rank, inputs)),
                TensorPlan(second, entry.dtype, (outputs, rank)),
            ),
        )

    def _made(self, key: str, record: Record) -> dict[str, torch.Tensor]:
        """What is stored of one tensor, by key; what that misses is on record first."""
        weight = self._checkpoint.read(key)
        name = key.removesuffix(".weight")
        if name not in self._keys:
            return {key: weight}
        rank = record.ranks[name]
        stored = {key: weight}
        if rank is None:
            record.missed[name] = Missed(0.0, squared_norm(weight))
        else:
            made = self._tried(key, weight, lambda matrix: factorize(matrix, rank))
            record.missed[name] = Missed(made.squared_error, made.squared_norm)
            first, second = factor_keys(key)
            stored = {first: made.first_RI, second: made.second_OR}
        record.save(self._settings.target)
        return stored

    def _tried(self, key: str, weight: torch.Tensor, work: Callable[[torch.Tensor], T]) -> T:
        try:
            return work(weight.to(self._device))
        except ValueError as error:
            file = self._checkpoint.entries[key].file
            raise CheckpointError(f"{file}: {key}: {error}") from None

    def copy_files(self) -> None:
        """Tokenizer and generation settings."""
        for pattern in _COPIED:
            for file in self._settings.source.glob(pattern):
                shutil.copyfile(file, self._settings.target / file.name)

    def write_config(self, ranks: Mapping[str, int | None]) -> None:
        """The source's config.json and what makes it a low-rank one."""
        config = read_object(self._settings.source / "config.json")
        config["auto_map"] = _AUTO_MAP
        config["ranks"] = {name: rank for name, rank in ranks.items() if rank is not None}
        part = self._settings.target / "config.json.part"
        part.write_text(json.dumps(config, indent=2) + "\n")
        part.rename(self._settings.target / "config.json")

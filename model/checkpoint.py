"""Reading a checkpoint directory tensor by tensor: Hugging Face's layout, or Mistral's own.

A tensor's bytes go straight from the file into its own memory. The usual mapping of a whole file
is avoided: it counts against the machine's memory, so that one file larger than memory cannot be
opened at all, even by a process that wants a small share of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.bitsandbytes_layout import faults_of, is_quantized, parts_of, whole_of
from model.config import ModelConfig
from model.config_values import config_file
from model.raw_files import is_raw, read_raw_headers
from model.raw_names import present, raw_name
from model.shards import CheckpointError, TensorEntry, read_header, read_shards, read_weight_map
from model.weights import EMBED_KEY, HEAD_KEY, expected_shapes

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

OnRead = Callable[[int], None]  # is told the bytes of each tensor once it is read

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # torch's names
_STORED_DTYPES = _DTYPES | {"U8": "uint8", "I8": "int8"}  # and those of quantized weights
_COMPUTED_KEY = ".rotary_emb.inv_freq"  # a constant that old checkpoints carry along
_MAX_LISTED = 10
_PREFIX = "model."


class Checkpoint:
    """A directory with model.safetensors, or with its shards and index. Opening reads headers only.

    Mistral's own files (consolidated.*) are presented under Hugging Face's names and in its order.
    Keys of a bare model (MixtralModel, MistralModel) are those of the files behind `model.`.

    Raises:
        CheckpointError: no weights, a shard missing, truncated or damaged, or an index that
            names a tensor its shard lacks; of raw weights also what `present` refuses.
    """

    def __init__(self, directory: str | Path, keys: Collection[str] | None = None) -> None:
        """With `keys` of those tensors alone: files that hold none of them need not be there."""
        self.directory = Path(directory)
        single, index = self.directory / SINGLE_FILE, self.directory / INDEX_FILE
        if is_raw(self.directory):
            raw = read_raw_headers(self.directory)
            shape = ModelConfig.from_dir(self.directory, generation_config=False)
            self._take(self.directory, present(raw, shape), "", raw)
        elif single.exists():
            entries = read_header(single)
            self._take(single, entries, key_prefix(entries))
        elif index.exists():
            weight_map = read_weight_map(index)
            prefix = key_prefix(weight_map)
            if keys is not None:
                weight_map = _belonging(weight_map, keys)
            self._take(index, read_shards(index, weight_map), prefix)
        else:
            raise CheckpointError(f"{self.directory}: neither {SINGLE_FILE} nor {INDEX_FILE} here")

    @classmethod
    def of(cls, listing: Path, entries: dict[str, TensorEntry]) -> Checkpoint:
        """One whose headers were read before: its files need not be here to be verified."""
        checkpoint = cls.__new__(cls)
        checkpoint.directory = listing.parent
        checkpoint._take(listing, entries, key_prefix(entries))
        return checkpoint

    def _take(
        self,
        listing: Path,
        entries: dict[str, TensorEntry],
        prefix: str,
        raw: dict[str, TensorEntry] | None = None,
    ) -> None:
        self._listing, self._prefix, self._raw = listing, prefix, raw or {}
        self.entries = {prefix + key: entry for key, entry in entries.items()}

    def verify(self, config: ModelConfig, keys: Collection[str] | None = None) -> None:
        """Checks every name, shape and dtype against `config`, from the headers alone.

        With `keys` those of these tensors, and no others.

        Raises:
            CheckpointError: lists up to ten tensors that are missing, extra or not as expected.
        """
        expected = expected_shapes(config)
        if keys is not None:
            expected = {key: expected[key] for key in keys}
        faults = []
        known = set(expected)
        for key, shape in expected.items():
            entry = self.entries.get(key)
            if entry is None:
                faults.append(
                    f"{self._listing}: {self._named(key)}: expected shape {list(shape)}, missing"
                )
            elif (
                config.bitsandbytes and len(shape) == 2 and key != EMBED_KEY and is_quantized(entry)
            ):
                faults += faults_of(key, shape, self.entries, config.bitsandbytes.bits)
                known.update(parts_of(key, self.entries).values())
            elif entry.shape != shape:
                faults.append(
                    f"{entry.file}: {self._named(key)}: expected shape {list(shape)}, "
                    f"found {list(entry.shape)}"
                )
            elif entry.dtype not in _DTYPES:
                faults.append(_wrong_dtype(self._named(key), entry))
        for key, entry in self.entries.items() if keys is None else ():
            tolerated = key.endswith(_COMPUTED_KEY) or (
                key == HEAD_KEY and config.tie_word_embeddings
            )
            if key not in known and not tolerated:
                faults.append(
                    f"{entry.file}: {self._named(key)}: not a tensor of this model, "
                    f"found shape {list(entry.shape)}"
                )
        if faults:
            listed = "\n  ".join(faults[:_MAX_LISTED])
            more = f"\n  and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
            raise CheckpointError(
                f"{self.directory}: tensors that do not fit {config_file(self.directory).name}: "
                f"{len(faults)}"
                f"\n  {listed}{more}"
            )

    def read(
        self,
        key: str,
        on_read: OnRead | None = None,
        take: Callable[[int], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One tensor in the dtype it is stored in: on the CPU, contiguous, in memory of its own.

        `take`: where that memory comes from, so many bytes of it (uint8).

        Raises:
            CheckpointError: no such tensor, of a type that is not read, or a file cut short.
        """
        import torch  # not at the top: checking a checkpoint's headers does without it

        entry = self._entry(key)
        if entry.dtype not in _STORED_DTYPES:
            raise CheckpointError(_wrong_dtype(self._named(key), entry))
        size_bytes = entry.size_bytes
        data = torch.empty(size_bytes, dtype=torch.uint8) if take is None else take(size_bytes)
        rest = data.numpy().data
        try:
            with entry.file.open("rb", buffering=0) as file:
                file.seek(entry.offset_bytes)
                while rest:
                    count = file.readinto(rest)
                    if not count:
                        raise CheckpointError(f"{entry.file}: ends within {self._named(key)}")
                    rest = rest[count:]
        except OSError as error:
            raise CheckpointError(
                f"{entry.file}: {self._named(key)} cannot be read: {error}"
            ) from error
        if on_read is not None:
            on_read(entry.size_bytes)
        return _arrange(data.view(getattr(torch, _STORED_DTYPES[entry.dtype])), entry)

    def read_each(
        self, keys: Iterable[str], on_read: OnRead | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Reads one tensor after another, in the order they lie on disk: (key, tensor) pairs."""
        for key in self.in_file_order(keys):
            yield key, self.read(key, on_read)

    def in_file_order(self, keys: Iterable[str]) -> list[str]:
        """The same keys, sorted by file and position: reading them so is sequential I/O."""

        def position(key: str) -> tuple[Path, int]:
            entry = self._entry(key)
            return entry.file, entry.offset_bytes

        return sorted(keys, key=position)

    def total_bytes(self, keys: Iterable[str]) -> int:
        """Bytes on disk of these tensors together, with what belongs to quantized ones."""
        total = 0
        for key in keys:
            total += self._entry(key).size_bytes
            if self.quantized(key):
                parts = parts_of(key, self.entries).values()
                total += sum(self.entries[name].size_bytes for name in parts)
        return total

    def quantized(self, key: str) -> bool:
        """Whether a weight is stored as bitsandbytes quantized it. CheckpointError if missing."""
        return is_quantized(self._entry(key))

    def _entry(self, key: str) -> TensorEntry:
        try:
            return self.entries[key]
        except KeyError:
            raise CheckpointError(f"{self._listing}: {self._named(key)} is missing") from None

    def _named(self, key: str) -> str:
        """The key as the files have it."""
        entry = self.entries.get(key)
        if entry is not None and entry.stored_key:
            return entry.stored_key
        if self._raw:
            return f"{raw_name(key, self._raw)} ({key})"
        return key.removeprefix(self._prefix)


def key_prefix(keys: Collection[str]) -> str:
    """What the keys of a file lack: MixtralModel by itself is nobody's `model`."""
    return _PREFIX if EMBED_KEY.removeprefix(_PREFIX) in keys else ""


def files_of(directory: Path, keys: Collection[str]) -> list[str]:
    """Names of the files that hold these tensors, as the index says, if there is one.

    Raises:
        CheckpointError: the index cannot be used.
    """
    index = directory / INDEX_FILE
    if not index.exists():
        return [SINGLE_FILE]
    return sorted(set(_belonging(read_weight_map(index), keys).values()))


def _belonging(weight_map: dict[str, str], keys: Collection[str]) -> dict[str, str]:
    """What an index says of these tensors, and of what quantized ones are made of besides."""
    prefix = key_prefix(weight_map)
    return {
        key: name
        for key, name in weight_map.items()
        if prefix + key in keys or prefix + whole_of(key) in keys
    }


def _arrange(stored: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    """A tensor's elements as the file has them, in the order they are to have."""
    if entry.is_transposed:
        return stored.reshape(entry.shape[::-1]).T.contiguous()
    if entry.rotary_heads:
        pairs = stored.reshape(entry.rotary_heads, -1, 2, entry.shape[-1])
        return pairs.transpose(1, 2).reshape(entry.shape)
    return stored.reshape(entry.shape)


def _wrong_dtype(key: str, entry: TensorEntry) -> str:
    known = ", ".join(_DTYPES)
    return f"{entry.file}: {key}: dtype is {entry.dtype}; one of {known} is needed"

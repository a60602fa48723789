"""Models by their name on the hub: what is fetched of them, and where it lies on this machine.

Planning needs the small files, and of the weights no more than their headers; each actor fetches
the files that its tensors lie in. All of one deployment use one commit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from actors.hub_access import HubAccess, HubError, OnFetch, bar, not_cached, refusals
from configs.schema import WindroseConfig
from model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, files_of, key_prefix
from model.config import ModelConfig
from model.shards import TensorEntry, read_header, read_weight_map
from model.weights import expected_shapes

CONFIG_FILE = "config.json"
SMALL_FILES = (
    CONFIG_FILE, "generation_config.json", "tokenizer.model", "tokenizer_config.json",
    "tokenizer.json", "added_tokens.json", "chat_template.jinja", INDEX_FILE,
)  # fmt: skip
_HEADERS_AT_ONCE = 8
_MAIN = "main"


@dataclass(frozen=True, slots=True)
class HubModel:
    """One commit of a model, and which of the files that may be of use it has."""

    name: str
    commit: str
    files: frozenset[str]
    access: HubAccess

    def directory(self) -> Path:
        """Where the small files lie on this machine, once fetched.

        Raises:
            HubError: one cannot be had.
        """
        for name in SMALL_FILES:
            if name in self.files:
                self.fetch(name)
        return self.fetch(CONFIG_FILE).parent

    def checkpoint(
        self, config: ModelConfig, keys: Collection[str], on_fetch: OnFetch | None = None
    ) -> Checkpoint:
        """These tensors, with the files that they lie in on this machine; shapes are checked.

        Raises:
            HubError: a file cannot be had.
            CheckpointError: a tensor is missing or not as expected.
        """
        directory = self.directory()
        for name in files_of(directory, keys):
            self.fetch(name, on_fetch)
        checkpoint = Checkpoint(directory, keys)
        checkpoint.verify(config, keys)
        return checkpoint

    def verify(self, config: ModelConfig) -> None:
        """Check every tensor's name and shape, from headers: of files that are here, else fetched.

        Offline, of files that are not here the names alone: their shapes are for who reads them.

        Raises:
            HubError: a file is missing.
            CheckpointError: lists what does not fit config.json.
        """
        directory = self.directory()
        listing = directory / (INDEX_FILE if INDEX_FILE in self.files else SINGLE_FILE)
        where: dict[str, str] = {}
        if listing.name == INDEX_FILE:
            where = read_weight_map(listing)
        names = sorted(set(where.values())) or [SINGLE_FILE]
        if missing := [name for name in names if name not in self.files]:
            said = f"; {INDEX_FILE} names it" if where else f", nor is {INDEX_FILE}"
            raise HubError(f"{self.name}: {missing[0]} is not among its files{said}")
        unread: set[str] = set()
        if self.access.offline and where:
            unread = {name for name in names if not (directory / name).exists()}
        read = [name for name in names if name not in unread]
        with ThreadPoolExecutor(_HEADERS_AT_ONCE) as threads:
            headers = threads.map(lambda name: self._header(directory / name), read)
            found = dict(zip(read, headers, strict=True))
        if where:
            pairs = ((key, found.get(name, {}).get(key)) for key, name in where.items())
            entries = {key: entry for key, entry in pairs if entry is not None}
        else:
            entries = found[SINGLE_FILE]
        elsewhere = {key_prefix(where) + key for key, name in where.items() if name in unread}
        keys = [key for key in expected_shapes(config) if key not in elsewhere]
        Checkpoint.of(listing, entries).verify(config, keys if unread else None)

    def _header(self, file: Path) -> dict[str, TensorEntry]:
        if file.exists():
            return read_header(file)
        if self.access.offline:
            raise HubError(not_cached(self.name, file.name, self.access))
        from huggingface_hub import HfApi

        with refusals(self.name, self.commit, self.access, file.name):
            read = HfApi(**self.access.arguments).parse_safetensors_file_metadata(
                self.name, file.name, revision=self.commit
            )
        return {
            key: TensorEntry(file, one.dtype, tuple(one.shape), one.data_offsets[0], 0)
            for key, one in read.tensors.items()
        }

    def fetch(
        self, name: str, on_fetch: OnFetch | None = None, *, revision: str | None = None
    ) -> Path:
        """One file, on this machine; with `revision` the cache notes that this commit is that.

        Raises:
            HubError: it cannot be had.
        """
        from huggingface_hub import hf_hub_download

        if name not in self.files:
            raise HubError(f"{self.name}: {name} is not among its files")
        with refusals(self.name, self.commit, self.access, name):
            path: str = hf_hub_download(
                self.name,
                name,
                revision=revision or self.commit,
                cache_dir=self.access.cache_dir,
                local_files_only=self.access.offline,
                tqdm_class=bar(on_fetch),
                **self.access.arguments,
            )
        return Path(path)


def find_model(config: WindroseConfig, environment: Mapping[str, str]) -> HubModel | None:
    """The model on the hub that `model` names, at the commit that `revision` is now.

    None where it is a directory.

    Raises:
        HubError: there is no such model or revision, or it cannot be reached and is not cached.
    """
    if not config.is_on_hub:
        if config.revision is not None or config.download_dir is not None:
            given = "revision" if config.revision is not None else "download_dir"
            raise HubError(f"{given} is for models of the hub, and {config.model} is none")
        return None
    access = HubAccess.of(config, environment)
    found = None if access.offline else _ask(config.model, config.revision, access)
    found = found or _cached(config.model, config.revision, access)
    if CONFIG_FILE not in found.files:
        raise HubError(f"{config.model}: {CONFIG_FILE} is not among its files")
    found.fetch(CONFIG_FILE, revision=config.revision or _MAIN)  # whoever comes offline finds it so
    return found


def _ask(name: str, revision: str | None, access: HubAccess) -> HubModel | None:
    """What the hub says; None where it cannot be reached and the cache has something."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with refusals(name, revision, access, None):
        try:
            info = HfApi(**access.arguments).model_info(name, revision=revision)
        except HTTPError as error:
            answered = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if answered or not _cached_config(name, revision, access):
                raise
            return None
    assert info.sha is not None, "the hub tells the commit"
    files = {one.rfilename for one in info.siblings or ()}
    return HubModel(name, info.sha, frozenset(filter(_is_wanted, files)), access)


def _cached(name: str, revision: str | None, access: HubAccess) -> HubModel:
    """What this machine has of it."""
    config = _cached_config(name, revision, access)
    if config is None:
        raise HubError(not_cached(name, CONFIG_FILE, access))
    directory = config.parent
    # Weights may be in other machines' caches: whether they are, their actors will say.
    files = {one.name for one in directory.iterdir()}
    if INDEX_FILE in files:
        files |= set(read_weight_map(directory / INDEX_FILE).values())
    return HubModel(name, directory.name, frozenset(filter(_is_wanted, files)), access)


def _cached_config(name: str, revision: str | None, access: HubAccess) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(
        name, CONFIG_FILE, cache_dir=access.cache_dir, revision=revision or _MAIN
    )
    return Path(path) if isinstance(path, str) else None


def _is_wanted(name: str) -> bool:
    """Neither pickles nor the original release's own files, which hold the weights once more."""
    is_weights = name.endswith(".safetensors") and not name.startswith("consolidated")
    return name in SMALL_FILES or (is_weights and "/" not in name)

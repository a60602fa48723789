"""What every actor of a pipeline must agree on, worked out once from config and checkpoint."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.hub import HubModel
from actors.hub_access import OnFetch
from actors.scheduling.scheduler_limits import SchedulerLimits
from configs.schema import WindroseConfig
from model.bitsandbytes_library import require_library
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.cpu_kernels.binary import load_binary
from model.generation_config import GenerationDefaults
from model.kv_size import GPU_CACHE_SHARE, block_bytes, blocks_in_sight

if TYPE_CHECKING:
    import torch

    from model.exchange import Ranks

_DEFAULT_CPU_CACHE_BYTES = 1 << 30
_BESIDE = ".windrose"  # of the checkpoint
_BITS = {"none": 16, "int8": 8, "int4": 4}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Sizes and types of one pipeline; plain data, so it can cross to any actor."""

    model_dir: str
    model: ModelConfig
    dtype: str
    device: str  # "cpu" or "cuda"
    limits: SchedulerLimits
    kv_cache_bytes: int | None  # None: decided on the GPU, from what is free
    num_attention: int
    num_expert: int
    attention_threads: int  # of an attention actor
    expert_threads: int  # of an expert actor
    micro_batches: int = 0  # of a step; 0: as many as pay
    bits: int = 16  # of a weight of experts and attention; 16: as the dtype has it
    cache_dir: str | None = None  # of weights of fewer bits, from the checkpoint; None: nowhere
    hub: HubModel | None = None  # where the weights come from; None: they lie in model_dir

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype as torch names it."""
        import torch  # not at the top: who only plans does without it, 1.4 s and 170 MB

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def checkpoint(self, keys: Collection[str], on_fetch: OnFetch | None = None) -> Checkpoint:
        """These tensors (at least), on this machine; from the hub if need be.

        Raises:
            ValueError: the files cannot be had or used; names them.
        """
        if self.hub is None:
            checkpoint = Checkpoint(self.model_dir)
            checkpoint.verify(self.model, keys)  # this machine's files may be others than planned
            return checkpoint
        return self.hub.checkpoint(self.model, keys, on_fetch)

    @property
    def num_ranks(self) -> int:
        """All actors of the pipeline."""
        return self.num_attention + self.num_expert

    def ranks(self, own: int) -> Ranks:
        """All ranks, as the actor of rank `own` sees them."""
        from model.exchange import Ranks

        return Ranks.of(self.num_attention, self.num_expert, own)

    def num_blocks(self, device: torch.device) -> int:
        """KV blocks of one attention actor: what the cache holds, but no more than it can use."""
        limits = self.limits
        cache_bytes = self.kv_cache_bytes
        if cache_bytes is None:
            import torch

            free_bytes, _ = torch.cuda.mem_get_info(device)
            cache_bytes = int(free_bytes * GPU_CACHE_SHARE)
        per_block = block_bytes(self.model, limits.block_size, self.dtype)
        each = limits.most_blocks(limits.max_model_len, limits.max_num_batched_tokens)
        usable = limits.max_num_seqs * each
        return min(cache_bytes // per_block, usable)


def check_checkpoint(
    config: WindroseConfig, hub: HubModel | None = None, *, headers: bool = True
) -> ModelConfig:
    """Read the checkpoint's configs and compare every tensor's name and shape with them.

    Without `headers` the tensors of one on the hub are left: the same commit has been checked.

    Raises:
        ValueError: names the directory, or the file and key at fault, or says that a dense model
            has no experts for expert actors.
    """
    directory = model_directory(config, hub)
    if not Path(directory).is_dir():
        raise ValueError(f"{directory}: no such directory; a checkpoint directory is needed")
    model = ModelConfig.from_dir(directory, generation_config=config.generation_config == "auto")
    if model.is_dense and config.expert_actors:
        raise ValueError(
            f"expert_actors is {config.expert_actors}, but {config.model} is a dense model: it has "
            "no experts, and its layers run whole in the attention actors; use --expert-actors 0"
        )
    if model.bitsandbytes is not None and config.quantization != "none":
        raise ValueError(
            f"quantization is {config.quantization}, but the weights of {config.model} are stored "
            f"in {model.bitsandbytes.bits} bits already (quantization_config in its config.json); "
            "serve it without --quantization"
        )
    require_library(config.model, model)
    if config.pooling is not None and model.head.task != "embed":
        raise ValueError(
            f"pooling is {config.pooling!r}, but {config.model} is {model.head.what_it_does}: "
            "only an embedding has a choice"
        )
    generation_defaults(config, directory)
    if hub is None:
        Checkpoint(directory).verify(model)
    elif headers:
        hub.verify(model)
    return model


def model_directory(config: WindroseConfig, hub: HubModel | None) -> str:
    """Where config, tokenizer and index lie on this machine.

    Raises:
        HubError: a file cannot be had.
    """
    return config.model if hub is None else str(hub.directory())


def generation_defaults(config: WindroseConfig, directory: str) -> GenerationDefaults:
    """What a request gets that does not say otherwise: the checkpoint's, unless told not to.

    Raises:
        ConfigError: names the file and key at fault.
    """
    if config.generation_config == "none":
        return GenerationDefaults()
    return GenerationDefaults.from_dir(directory)


def default_threads(
    num_cores: int, num_attention: int, num_expert: int, *, waits_for_all: bool
) -> tuple[int, int]:
    """Compute threads of one attention actor, and of one expert actor.

    The two roles take turns, so each has all cores; and since a step's rows seldom keep all
    experts as busy, an expert actor has twice its share. Where every thread waits for all others
    (OpenMP), the actors share what is left when the ingress, the proxy and Ray have one core: on
    2 cores one such thread decodes twice as fast as two do.
    """
    if waits_for_all:
        share = max(1, (num_cores - 1) // (num_attention + num_expert))
        return share, share
    twice = 2 * num_cores // max(1, num_expert)
    return max(1, num_cores // num_attention), max(1, min(num_cores, twice))


def plan_model(
    config: WindroseConfig, device: str, hub: HubModel | None = None, *, headers: bool = True
) -> ModelPlan:
    """Read the checkpoint's config, check its tensors' names and shapes, and fix all sizes.

    `hub` is what `find_model` found; `headers` as for check_checkpoint.

    Raises:
        ValueError: the checkpoint or the settings cannot be served; names the file and key, or
            the setting.
    """
    model = check_checkpoint(config, hub, headers=headers)
    if config.expert_actors > model.num_experts:
        raise ValueError(
            f"expert_actors is {config.expert_actors}, but the model has only "
            f"{model.num_experts} experts a layer"
        )
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    cache_bytes = config.kv_cache_memory_bytes
    if cache_bytes is None and device == "cpu":
        cache_bytes = _DEFAULT_CPU_CACHE_BYTES
    limits = SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=_max_model_len(config, model, dtype, cache_bytes),
        block_size=config.block_size,
        eos_token_ids=model.eos_token_ids,
        enable_prefix_caching=config.enable_prefix_caching,
        max_itl_stretch=config.max_itl_stretch,
        sliding_window=model.sliding_window,
    )
    threads = default_threads(
        os.cpu_count() or 1,
        config.attention_actors,
        config.expert_actors,
        waits_for_all=dtype != "bfloat16" or model.needs_openmp or load_binary() is None,
    )
    return ModelPlan(
        model_dir=model_directory(config, hub),
        model=model,
        dtype=dtype,
        device=device,
        limits=limits,
        kv_cache_bytes=cache_bytes,
        num_attention=config.attention_actors,
        num_expert=config.expert_actors,
        attention_threads=config.threads_per_actor or threads[0],
        expert_threads=config.threads_per_actor or threads[1],
        micro_batches=config.micro_batches,
        bits=_BITS[config.quantization],
        cache_dir=_cache_dir(config),
        hub=hub,
    )


def _cache_dir(config: WindroseConfig) -> str | None:
    if config.quantization == "none" or config.quantization_cache == "none":
        return None
    if config.quantization_cache == "auto":
        return _BESIDE
    model = Path(config.model) if config.is_on_hub else Path(config.model).resolve()
    which = hashlib.blake2b(str(model).encode(), digest_size=4).hexdigest()
    return str(Path(config.quantization_cache).resolve() / f"{model.name}-{which}")


def _max_model_len(
    config: WindroseConfig, model: ModelConfig, dtype: str, cache_bytes: int | None
) -> int:
    """The context length: as asked, else the model's own or what the cache holds of it.

    Behind a sliding window nothing is held: a cache for what one row sees is enough for any.
    """
    longest = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ValueError(f"max_model_len is {config.max_model_len}; the model knows {longest}")
    if cache_bytes is None:
        return config.max_model_len or longest
    per_block = block_bytes(model, config.block_size, dtype)
    num_blocks, window = cache_bytes // per_block, model.sliding_window
    capacity = num_blocks * config.block_size
    if window is not None and num_blocks >= blocks_in_sight(window, 1, config.block_size):
        return config.max_model_len or longest
    wanted = config.max_model_len or max(1, min(longest, capacity))
    if wanted > capacity:
        raise ValueError(
            f"kv_cache_memory_bytes ({cache_bytes}) holds {capacity} tokens of this model, fewer "
            f"than max_model_len ({wanted}): raise the one or lower the other"
        )
    if wanted < longest and config.max_model_len is None:
        logger.warning(
            "max_model_len is %d, not the model's %d: the KV cache holds no more; "
            "--kv-cache-memory-bytes makes room",
            wanted,
            longest,
        )
    return wanted

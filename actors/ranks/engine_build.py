"""Putting an engine together from a plan, the weights and a dispatcher; with or without Ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.model_plan import ModelPlan
from actors.ranks.engine import Engine
from actors.ranks.pooled_step import PooledStep
from actors.scheduling.micro_batches import MicroBatches
from actors.scheduling.scheduler import Scheduler
from model.block_pool import BlockPool
from model.checkpoint import Checkpoint, OnRead
from model.decoder import Decoder
from model.decoder_weights import DecoderWeights
from model.dispatch import Dispatcher, LocalDispatcher
from model.exact_dispatch import ExactDispatcher
from model.expert_load import ExpertLoad
from model.expert_server import ExpertServer
from model.experts import ExpertShard
from model.feed_forward import DenseFeedForward, FeedForward, MixtureOfExperts
from model.host_memory import give_back_freed
from model.kv_cache import KVCache
from model.loading import load_decoder, load_experts
from model.pooling import Pooler
from model.quantized_cache import QuantizedCache
from model.rope import Rope
from model.row_message import RowShape
from model.weights import expected_shapes

LOAD_WORKERS = 2  # experts read at once where all are: one is packed while another is read


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, and the load counters that its decoder fills; none where there are no experts."""

    engine: Engine
    load: ExpertLoad | None


def all_experts(plan: ModelPlan) -> list[tuple[int, int]]:
    """Every (layer, expert) of the model; none of a dense one."""
    return [(i, e) for i in range(plan.model.num_layers) for e in range(plan.model.num_experts)]


def quantized_cache(plan: ModelPlan, checkpoint: Checkpoint) -> QuantizedCache | None:
    """Where the plan keeps its quantized matrices; None where it has none or keeps none."""
    if plan.bits == 16 or plan.cache_dir is None:
        return None
    cache = QuantizedCache(checkpoint.directory / plan.cache_dir, checkpoint)
    cache.remove_abandoned()
    return cache


def build_engine(
    plan: ModelPlan, weights: DecoderWeights, dispatcher: Dispatcher | None, device: torch.device
) -> BuiltEngine:
    """Allocate the KV cache and counters and join them to the decoder and the scheduler.

    A dense model has no dispatcher.
    """
    model, limits, dtype = plan.model, plan.limits, plan.torch_dtype
    num_blocks = plan.num_blocks(device)
    # The scheduler first: it refuses a cache too small before memory is taken for it.
    scheduler = Scheduler(limits, BlockPool(num_blocks))
    cache = KVCache(model, num_blocks, limits.block_size, dtype, device)
    load: ExpertLoad | None = None
    feed_forward: FeedForward = DenseFeedForward(weights.dense_blocks)
    if dispatcher is not None:
        num_slots = num_blocks * limits.block_size
        load = ExpertLoad(model.num_layers, model.num_experts, model.top_k, num_slots, device)
        feed_forward = MixtureOfExperts(weights.gates, dispatcher, load)
    rope = Rope(model.head_dim, model.rope_theta, limits.max_model_len, dtype, device)
    decoder = Decoder(model, weights, feed_forward, rope)
    # Where nothing travels nothing overlaps, and a GPU's times are not those that a host measures.
    can_choose = plan.num_expert > 0 and device.type == "cpu"
    micro_batches = plan.micro_batches if plan.num_expert else 1
    choice = MicroBatches(micro_batches if can_choose else micro_batches or 1)
    pooled = None
    if model.head.task != "generate":
        pooled = PooledStep(Pooler(model.head, weights.score_ND))
    return BuiltEngine(Engine(decoder, cache, scheduler, device, choice, pooled), load)


def colocated_engine(
    plan: ModelPlan, device: torch.device, on_read: OnRead | None = None
) -> BuiltEngine:
    """Read the whole model into this process and build its engine: topology (1, 0)."""
    keys, dtype = frozenset(expected_shapes(plan.model)), plan.torch_dtype
    checkpoint = plan.checkpoint(keys)
    cache = quantized_cache(plan, checkpoint)
    weights = load_decoder(
        checkpoint, plan.model, dtype, device, on_read, bits=plan.bits, cache=cache
    )
    dispatcher = None
    if held := all_experts(plan):
        dispatcher = LocalDispatcher(
            load_experts(
                checkpoint,
                plan.model,
                held,
                dtype,
                device,
                on_read,
                workers=LOAD_WORKERS,
                bits=plan.bits,
                cache=cache,
            )
        )
    give_back_freed()
    return build_engine(plan, weights, dispatcher, device)


def exact_dispatcher(plan: ModelPlan, device: torch.device) -> ExactDispatcher:
    """The attention side of the exact dispatcher, sized for the plan's steps; not attached yet."""
    return ExactDispatcher(_row_shape(plan, device))


def expert_server(plan: ModelPlan, shard: ExpertShard, device: torch.device) -> ExpertServer:
    """The expert side of the exact dispatcher, sized for the plan's steps; not attached yet."""
    return ExpertServer(shard, plan.model.num_layers, _row_shape(plan, device))


def _row_shape(plan: ModelPlan, device: torch.device) -> RowShape:
    return RowShape(
        max_rows=plan.limits.max_num_batched_tokens,
        hidden=plan.model.hidden_size,
        top_k=plan.model.top_k,
        dtype=plan.torch_dtype,
        device=device,
    )

"""What an expert rank holds and does: some experts, and a loop that serves rows with them.

It never sees a request. The Ray side is `rank_actor.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from actors.model_plan import ModelPlan
from actors.ranks.actor_stats import ActorStats
from actors.ranks.engine_build import expert_server, quantized_cache
from actors.ranks.epochs import Epoch, Epochs
from actors.ranks.priority import step_back
from actors.ranks.progress import Progress
from model.checkpoint import Checkpoint
from model.exchange import LoopEnd
from model.expert_server import ExpertServer
from model.experts import ExpertShard
from model.host_memory import give_back_freed
from model.loading import load_experts
from model.placement import Pair
from model.weights import expert_keys, stored_keys


class ExpertRank:
    """One expert rank."""

    def __init__(self, plan: ModelPlan, device: torch.device, progress: Progress) -> None:
        self._plan = plan
        self._device = device
        self._progress = progress
        self._shard = ExpertShard({})
        self._wanted: set[Pair] = set()
        self._server: ExpertServer = expert_server(plan, self._shard, device)

    def load(self, pairs: Collection[Pair]) -> None:
        """Read the experts that this rank is to begin with.

        Raises:
            ValueError: names the file and key at fault.
        """
        self._wanted = set(pairs)
        keys = self._keys(pairs)
        checkpoint = self._plan.checkpoint(keys, self._progress.fetched)
        self._progress.begin(checkpoint.total_bytes(keys))
        self._read(checkpoint, pairs)

    def want(self, pairs: Collection[Pair]) -> list[Pair]:
        """Note that these are to be held too; returns those that `hold` has to read."""
        self._wanted.update(pairs)
        held = set(self._shard.held)
        return [pair for pair in pairs if pair not in held]

    def hold(self, missing: Collection[Pair]) -> None:
        """Read these while serving goes on, as long as they are wanted.

        To be called in a thread of its own, which then runs behind everything else.

        Raises:
            ValueError: names the file and key at fault; what was read before it is kept.
        """
        step_back()
        if missing:
            self._read(self._plan.checkpoint(self._keys(missing)), missing)

    def keep(self, pairs: Collection[Pair]) -> None:
        """Give up the weights of all others, which no attention rank sends rows to any more.

        Those that are still being read are given up as well.
        """
        self._wanted = set(pairs)
        self._shard.remove([pair for pair in self._shard.held if pair not in self._wanted])

    def _keys(self, pairs: Collection[Pair]) -> frozenset[str]:
        model = self._plan.model
        return frozenset(
            key for pair in pairs for key in stored_keys(model, expert_keys(model, *pair))
        )

    def _read(self, checkpoint: Checkpoint, pairs: Collection[Pair]) -> None:
        plan, cache = self._plan, quantized_cache(self._plan, checkpoint)
        for pair in pairs:
            if pair not in self._wanted:
                continue
            one = load_experts(
                checkpoint,
                plan.model,
                [pair],
                plan.torch_dtype,
                self._device,
                self._progress,
                bits=plan.bits,
                cache=cache,
            )
            self._shard.add(one)
            if pair not in self._wanted:
                self._shard.remove([pair])
        give_back_freed()

    def run(self, epochs: Epochs) -> None:
        """Serve until told to stop."""
        epochs.run(self._run_epoch)

    def _run_epoch(self, epoch: Epoch) -> LoopEnd:
        self._server.attach(epoch.exchange)
        return self._server.run()

    def stats(self, base: ActorStats) -> ActorStats:
        """`base` with this rank's part filled in."""
        times = self._server.times
        return replace(
            base,
            weights_bytes=self._shard.num_bytes,
            num_steps=times.steps,
            num_rows=times.rows,
            wait_s=times.wait_s,
            compute_s=times.compute_s,
            communication_s=times.communication_s,
            sent_bytes=times.sent_bytes,
        )

"""Schedulers in virtual time: steps take what a model of the machine says, arrivals when they may.

The ranks of a pipeline go in lockstep, as `step_loop.py` has them go.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from actors.messages import GenerateRequest
from actors.scheduling.scheduler import Scheduler, SchedulerLimits
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams

Seconds = Callable[[int, int], float]  # decode rows, prefill rows -> a step


def straight(decodes: int, prefills: int) -> float:
    """A step by number of rows, as on a small machine without a GPU."""
    return 0.010 + 0.0010 * decodes + 0.00065 * prefills


def steady(seconds: Seconds) -> Callable[[random.Random, int, int], float]:
    return lambda _rng, decodes, prefills: seconds(decodes, prefills)


@dataclass
class Stream:
    """One request and when its tokens came."""

    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    rank: int = 0
    priority: int = 0
    followers: int = 0  # how many like it come one after the other, each as the one before ends
    token_times_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] - self.arrival_s

    @property
    def gaps_s(self) -> list[float]:
        times = self.token_times_s
        return [b - a for a, b in pairwise(times)]

    def gaps_between(self, start_s: float, end_s: float) -> list[float]:
        """Gaps that end in this time."""
        times = self.token_times_s
        return [b - a for a, b in pairwise(times) if start_s <= b < end_s]


@dataclass
class Run:
    """What came of it."""

    end_s: float = 0.0
    num_steps: int = 0
    rows: list[tuple[float, int, int]] = field(default_factory=list)  # end, decodes, prefills


def play(
    streams: list[Stream],
    seconds: Callable[[random.Random, int, int], float] = steady(straight),
    *,
    num_ranks: int = 1,
    max_rows: int = 512,
    max_itl_stretch: float = 2.0,
    max_num_seqs: int = 64,
    num_blocks: int = 4096,
    seed: int = 0,
) -> Run:
    """Run all streams and their followers, which are added, to their end; fills in the times."""
    limits = SchedulerLimits(
        max_num_seqs, max_rows, 16384, 16, (), False, max_itl_stretch=max_itl_stretch
    )
    ranks = [Scheduler(limits, BlockPool(num_blocks)) for _ in range(num_ranks)]
    rng, run, now_s = random.Random(seed), Run(), 0.0
    coming = sorted(enumerate(streams), key=lambda pair: pair[1].arrival_s)
    while coming or any(rank.has_work for rank in ranks):
        if not any(rank.has_work for rank in ranks):
            now_s = max(now_s, coming[0][1].arrival_s)
        while coming and coming[0][1].arrival_s <= now_s:
            number, stream = coming.pop(0)
            ranks[stream.rank].add(_request(number, stream))
        plans = [rank.schedule() for rank in ranks]
        decodes = sum(len(plan.decodes) for plan in plans)
        prefills = sum(plan.num_rows for plan in plans) - decodes
        for rank, plan in zip(ranks, plans, strict=True):
            own = len(plan.decodes), plan.num_rows - len(plan.decodes)
            rank.pace.begin(now_s, *own, decodes - own[0], prefills - own[1])
        now_s += seconds(rng, decodes, prefills)
        run.num_steps += 1
        run.rows.append((now_s, decodes, prefills))
        for rank, plan in zip(ranks, plans, strict=True):
            for event in rank.finish_step(plan, [(7, None)] * len(plan.sampling_chunks())):
                stream = streams[int(event.request_id)]
                stream.token_times_s.append(now_s)
                if event.finish_reason and stream.followers:
                    follower = replace(
                        stream, arrival_s=now_s, token_times_s=[], followers=stream.followers - 1
                    )
                    coming.append((len(streams), follower))
                    streams.append(follower)
    run.end_s = now_s
    return run


def _request(number: int, stream: Stream) -> GenerateRequest:
    return GenerateRequest(
        str(number),
        "ingress",
        tuple(range(stream.prompt_tokens)),
        SamplingParams(max_tokens=stream.max_tokens, seed=0),
        arrival_s=stream.arrival_s,
        priority=stream.priority,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so great a share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]

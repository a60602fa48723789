"""Every metric of Windrose: its name, kind, labels and help. GET /metrics and Ray's own export
are made from this table, dashboards and alerts are checked against it.

`model_name` is a label of all of them and is added when they are written out. Names are vLLM's
where it has the same one, with the prefix `windrose_`; counters end in `_total` in the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 2, 5, 10)
_E2E_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_QUEUE_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_RECOVERY_S = (0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; a histogram has the upper bounds of its buckets, +Inf left out."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def sample_names(self) -> tuple[str, ...]:
        """What its samples are called in Prometheus."""
        if self.kind == "counter":
            return (f"{self.name}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"windrose_{name}", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"windrose_{name}", "gauge", text, labels)


def _seconds(name: str, text: str, buckets_s: tuple[float, ...], *labels: str) -> Metric:
    return Metric(f"windrose_{name}_seconds", "histogram", text, labels, buckets_s)


_RANK = ("pipeline", "rank")
_ROLE = ("pipeline", "rank", "role")

# Requests, as their clients see them. "Request" means one sequence: n choices count n times.
TTFT = _seconds("time_to_first_token", "Arrival to first token", _TTFT_S)
ITL = _seconds("inter_token_latency", "Between two tokens of a request", _ITL_S)
E2E = _seconds("e2e_request_latency", "Arrival to last token", _E2E_S)
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens accepted")
GENERATION_TOKENS = _counter("generation_tokens", "Tokens generated")
FINISHED = _counter(
    "request_success",
    "Requests that ended, by why (abort: the client went away)",
    "finished_reason",
)
REFUSED = _counter("requests_refused", "Requests answered with an error, by HTTP status", "code")

# Attention actors.
QUEUE_TIME = _seconds("request_queue_time", "Arrival to the first row of a prompt", _QUEUE_S)
RUNNING = _gauge("num_requests_running", "Sequences in the running batch", *_RANK)
WAITING = _gauge("num_requests_waiting", "Sequences waiting to be admitted", *_RANK)
KV_USAGE = _gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", *_RANK)
MICRO_BATCHES = _gauge("micro_batches", "Micro-batches of the last step", *_RANK)
RECENT_TTFT = _gauge(
    "recent_time_to_first_token_seconds",
    "Mean of the last half minute, or how long the oldest request has waited for its first token",
    *_RANK,
)
PLACEMENT_VERSION = _gauge("placement_version", "Version of the expert placement", *_RANK)
PREEMPTIONS = _counter("num_preemptions", "Sequences preempted", *_RANK)
PREFIX_QUERIES = _counter("prefix_cache_queries", "Tokens looked up", *_RANK)
PREFIX_HITS = _counter("prefix_cache_hits", "Of these, found cached", *_RANK)
ENGINE_STEPS = _counter("engine_steps", "Steps run", *_RANK)
ENGINE_ROWS = _counter("engine_rows", "Rows run", *_RANK)

# Both roles.
EXPERT_ACTOR_ROWS = _counter("expert_actor_rows", "Rows an expert actor ran, over layers", *_RANK)
STEP_SECONDS = _counter(
    "step_seconds",
    "Where the time of steps went: waiting for the other role, own work, messages",
    *_ROLE,
    "phase",
)
SENT_BYTES = _counter("sent_bytes", "Bytes of rows and sums sent to other ranks", *_ROLE)

# Experts. Tokens are of all pipelines together, those that are gone included.
EXPERT_TOKENS = _counter("expert_tokens", "Rows that chose an expert", "layer", "expert")
EXPERT_PAIRS = _counter("expert_pairs", "Consecutive tokens of a sequence that were compared")
EXPERT_REPEATS = _counter(
    "expert_repeats",
    "Pairs of consecutive tokens with the same first choice of expert (first), or any in common",
    "layer",
    "choice",
)
EXPERT_SHARE = _gauge(
    "expert_share",
    "Share of its layer's choices that an expert had in the last minute, 0 to 1",
    "layer",
    "expert",
)
EXPERT_HOLDERS = _gauge(
    "expert_holders", "Ranks that hold an expert and serve", "pipeline", "layer", "expert"
)
REDUNDANT_EXPERTS = _gauge(
    "redundant_experts", "Copies asked for in every layer, beyond one of each expert", "pipeline"
)

# Pipelines.
SERVING = _gauge("pipeline_serving", "1 while a pipeline serves, 0 while it recovers", "pipeline")
RECOVERIES = _counter(
    "recoveries", "Actors lost and replaced, by role and cause", "pipeline", "role", "cause"
)
RECOVERY_SECONDS = _seconds(
    "recovery", "From the notice of a loss to the next step", _RECOVERY_S, "pipeline"
)
PLACEMENT_CHANGES = _counter(
    "placement_changes",
    "Changes of the placement that were asked for, by outcome",
    "pipeline",
    "outcome",
)
BALANCE_PROPOSALS = _counter(
    "balance_proposals", "What the balancer made of the load, by outcome", "pipeline", "outcome"
)
RANKS_REPLACING = _gauge("ranks_replacing", "Ranks that wait for an actor", "pipeline")
SPARE_ACTORS = _gauge("spare_actors", "Idle actors", "pipeline")

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
BY_NAME = {metric.name: metric for metric in METRICS}

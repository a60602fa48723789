"""The four dashboards. `python -m ops.grafana.boards` writes their JSON to ops/grafana/dashboards.

Queries read the metrics of actors/metric_table.py and the rules of ops/prometheus/recording.yml.
"""

from __future__ import annotations

import json
from pathlib import Path

from ops.grafana.panels import Dashboard, Panel, Query, Variable

DASHBOARDS_DIR = Path(__file__).parent / "dashboards"
_MODEL = Variable("model", "label_values(windrose_pipeline_serving, model_name)")
_LAYER = Variable("layer", "label_values(windrose_expert_tokens_total, layer)")
_OF = 'model_name=~"$model"'


def _rate(name: str, by: str = "", where: str = "") -> str:
    """Per second, summed over all labels but `by`."""
    labels = f"{_OF}, {where}" if where else _OF
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({name}{{{labels}}}[$__rate_interval]))"


def _total(name: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({name}{{{_OF}}})"


def _latency(name: str, title: str, about: str) -> Panel:
    bucket = _rate(f"{name}_bucket", "le")
    queries = [
        Query(f"histogram_quantile({q}, {bucket})", f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)
    ]
    mean = f"{_rate(f'{name}_sum')} / {_rate(f'{name}_count')}"
    return Panel(title, "timeseries", (*queries, Query(mean, "mean")), unit="s", about=about)


_SERVING = Dashboard(
    "windrose-serving",
    "Windrose: serving",
    (
        Panel(
            "Output tokens a second",
            "stat",
            (Query(_rate("windrose_generation_tokens_total")),),
            width=6,
            height=4,
        ),
        Panel(
            "Running", "stat", (Query(_total("windrose_num_requests_running")),), width=6, height=4
        ),
        Panel(
            "Waiting", "stat", (Query(_total("windrose_num_requests_waiting")),), width=6, height=4
        ),
        Panel(
            "KV cache in use",
            "stat",
            (Query(f"max (windrose_kv_cache_usage_perc{{{_OF}}})"),),
            unit="percentunit",
            width=6,
            height=4,
            about="Of the fullest attention actor",
        ),
        _latency("windrose_time_to_first_token_seconds", "Time to first token", "At the ingress"),
        _latency("windrose_inter_token_latency_seconds", "Between two tokens", "At the ingress"),
        _latency("windrose_e2e_request_latency_seconds", "Whole requests", "To the last token"),
        _latency("windrose_request_queue_time_seconds", "Queue", "Arrival to first row"),
        Panel(
            "Tokens a second",
            "timeseries",
            (
                Query(_rate("windrose_prompt_tokens_total"), "prompts"),
                Query(_rate("windrose_generation_tokens_total"), "output"),
            ),
        ),
        Panel(
            "Requests a second, by end",
            "timeseries",
            (
                Query(
                    _rate("windrose_request_success_total", "finished_reason"),
                    "{{finished_reason}}",
                ),
                Query(f"{_rate('windrose_requests_refused_total')} or vector(0)", "refused"),
            ),
        ),
        Panel(
            "Requests by attention actor",
            "timeseries",
            (
                Query(
                    _total("windrose_num_requests_running", "pipeline, rank"), "running, {{rank}}"
                ),
                Query(
                    _total("windrose_num_requests_waiting", "pipeline, rank"), "waiting, {{rank}}"
                ),
            ),
        ),
        Panel(
            "KV cache and prefix cache",
            "timeseries",
            (
                Query(f"windrose_kv_cache_usage_perc{{{_OF}}}", "in use, {{rank}}"),
                Query(
                    f"{_rate('windrose_prefix_cache_hits_total')} / "
                    f"({_rate('windrose_prefix_cache_queries_total')} > 0)",
                    "prompt tokens found cached",
                ),
            ),
            unit="percentunit",
            most=1,
        ),
        Panel(
            "Preemptions a second",
            "timeseries",
            (Query(_rate("windrose_num_preemptions_total", "pipeline, rank"), "{{rank}}"),),
        ),
        Panel(
            "Slow first tokens",
            "timeseries",
            (
                Query(f"windrose:ttft_slow:ratio5m{{{_OF}}}", "five minutes"),
                Query(f"windrose:ttft_slow:ratio1h{{{_OF}}}", "an hour"),
            ),
            unit="percentunit",
            about="Share that took longer than 2.5 s; the objective is 1 %",
        ),
    ),
    (_MODEL,),
)

_THESE = 'layer=~"$layer"'
_IN = f"{_OF}, {_THESE}"

_EXPERTS = Dashboard(
    "windrose-experts",
    "Windrose: experts",
    (
        Panel(
            "Load by layer and expert, in even shares",
            "heatmap",
            (
                Query(
                    f"windrose:expert_share_over_uniform:rate1m{{{_IN}}}",
                    "L{{layer}} E{{expert}}",
                ),
            ),
            width=24,
            height=14,
            about="One row per expert of a layer; 1 is the share of an even load",
        ),
        Panel(
            "Balancedness",
            "stat",
            (Query(f"windrose:balancedness:rate1m{{{_OF}}}"),),
            unit="percentunit",
            width=6,
            about="Mean over max load of a layer's experts, averaged over layers; 100 % is even",
        ),
        Panel(
            "Balancedness by layer",
            "timeseries",
            (Query(f"windrose:layer_balancedness:rate1m{{{_IN}}}", "layer {{layer}}"),),
            unit="percentunit",
            width=18,
            most=1,
        ),
        Panel(
            "Hottest expert of each layer, in even shares",
            "bargauge",
            (
                Query(
                    f"windrose:hottest_expert:rate1m{{{_IN}}}",
                    "layer {{layer}}: expert {{expert}}",
                    instant=True,
                ),
            ),
        ),
        Panel(
            "Share of the last minute",
            "timeseries",
            (
                Query(
                    f"avg by (expert) (windrose_expert_share{{{_IN}}})",
                    "expert {{expert}}",
                ),
            ),
            unit="percentunit",
            stacked=True,
            about="Averaged over the chosen layers",
        ),
        Panel(
            "Choices a second",
            "timeseries",
            (Query(_rate("windrose_expert_tokens_total", "expert", _THESE), "{{expert}}"),),
            stacked=True,
            about="A token counts for each expert its gate chose, in every layer",
        ),
        Panel(
            "Repeats of the token before",
            "timeseries",
            (
                Query(
                    f"{_rate('windrose_expert_repeats_total', 'layer, choice', _THESE)}"
                    f" / on () group_left () {_rate('windrose_expert_pairs_total')}",
                    "layer {{layer}}, {{choice}}",
                ),
            ),
            unit="percentunit",
            about="Same first choice, or any in common; by chance 12.5 % and 46.4 % of 8 experts",
        ),
        Panel(
            "Ranks that hold an expert",
            "table",
            (Query(f"sum by (layer, expert) (windrose_expert_holders{{{_IN}}})", instant=True),),
            width=24,
        ),
    ),
    (_MODEL, _LAYER),
)

_ACTORS = Dashboard(
    "windrose-actors",
    "Windrose: actors",
    tuple(
        Panel(
            f"Time of {role} actors: {phase}",
            "timeseries",
            (
                Query(
                    _rate(
                        "windrose_step_seconds_total",
                        "pipeline, rank",
                        f'role="{role}", phase="{phase}"',
                    ),
                    "{{pipeline}} {{rank}}",
                ),
            ),
            unit="percentunit",
            width=8,
        )
        for role in ("attention", "expert")
        for phase in ("wait", "compute", "communication")
    )
    + (
        Panel(
            "Where all actors' time goes",
            "timeseries",
            (Query(_rate("windrose_step_seconds_total", "role, phase"), "{{role}}: {{phase}}"),),
            unit="s",
            stacked=True,
        ),
        Panel(
            "Rows a second",
            "timeseries",
            (
                Query(_rate("windrose_engine_rows_total", "pipeline, rank"), "attention {{rank}}"),
                Query(
                    _rate("windrose_expert_actor_rows_total", "pipeline, rank"),
                    "expert {{rank}}, over layers",
                ),
            ),
        ),
        Panel(
            "Sent",
            "timeseries",
            (
                Query(
                    _rate("windrose_sent_bytes_total", "role, pipeline, rank"), "{{role}} {{rank}}"
                ),
            ),
            unit="Bps",
        ),
        Panel(
            "Steps a second, and micro-batches",
            "timeseries",
            (
                Query(_rate("windrose_engine_steps_total", "pipeline, rank"), "steps, {{rank}}"),
                Query(f"windrose_micro_batches{{{_OF}}}", "micro-batches, {{rank}}"),
            ),
        ),
    ),
    (_MODEL,),
)

_PLACEMENT = Dashboard(
    "windrose-placement",
    "Windrose: recoveries and placement",
    (
        Panel("Pipelines serving", "stat", (Query(_total("windrose_pipeline_serving")),), width=6),
        Panel(
            "Ranks being replaced", "stat", (Query(_total("windrose_ranks_replacing")),), width=6
        ),
        Panel("Spare actors", "stat", (Query(_total("windrose_spare_actors")),), width=6),
        Panel(
            "Placement version",
            "stat",
            (Query(f"max (windrose_placement_version{{{_OF}}})"),),
            width=6,
        ),
        Panel(
            "Actors lost, by role and cause",
            "timeseries",
            (Query(_total("windrose_recoveries_total", "role, cause"), "{{role}}: {{cause}}"),),
        ),
        Panel(
            "Recoveries, and seconds they took",
            "timeseries",
            (
                Query(_total("windrose_recovery_seconds_count", "pipeline"), "{{pipeline}}"),
                Query(_total("windrose_recovery_seconds_sum", "pipeline"), "{{pipeline}}, seconds"),
            ),
        ),
        Panel(
            "Changes of the placement, by outcome",
            "timeseries",
            (Query(_total("windrose_placement_changes_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "What the balancer made of the load",
            "timeseries",
            (Query(_total("windrose_balance_proposals_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Copies in each layer",
            "timeseries",
            (
                Query(
                    f"sum by (pipeline, layer) (windrose_expert_holders{{{_OF}}})",
                    "{{pipeline}}, layer {{layer}}",
                ),
                Query(f"windrose_redundant_experts{{{_OF}}}", "{{pipeline}}: asked for beyond one"),
            ),
            width=24,
        ),
    ),
    (_MODEL,),
)

DASHBOARDS = (_SERVING, _EXPERTS, _ACTORS, _PLACEMENT)


def text_of(dashboard: Dashboard) -> str:
    """The file's content."""
    return json.dumps(dashboard.json(), indent=2) + "\n"


def write() -> None:
    """Write every dashboard to its file."""
    for dashboard in DASHBOARDS:
        (DASHBOARDS_DIR / f"{dashboard.uid}.json").write_text(text_of(dashboard))


if __name__ == "__main__":
    write()

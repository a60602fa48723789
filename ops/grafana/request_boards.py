"""The dashboards of requests and of the actors that serve them."""

from __future__ import annotations

from ops.grafana.panels import Dashboard, Panel, Query
from ops.grafana.promql import MODEL, OF, rate, total


def _latency(name: str, title: str, about: str) -> Panel:
    bucket = rate(f"{name}_bucket", "le")
    queries = [
        Query(f"histogram_quantile({q}, {bucket})", f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)
    ]
    mean = f"{rate(f'{name}_sum')} / {rate(f'{name}_count')}"
    return Panel(title, "timeseries", (*queries, Query(mean, "mean")), unit="s", about=about)


SERVING = Dashboard(
    "windrose-serving",
    "Windrose: serving",
    (
        Panel(
            "Output tokens a second",
            "stat",
            (Query(rate("windrose_generation_tokens_total")),),
            width=6,
            height=4,
        ),
        Panel(
            "Running",
            "stat",
            (Query(total("windrose_num_requests_running")),),
            width=6,
            height=4,
        ),
        Panel(
            "Waiting",
            "stat",
            (Query(total("windrose_num_requests_waiting")),),
            width=6,
            height=4,
        ),
        Panel(
            "KV cache in use",
            "stat",
            (Query(f"max (windrose_kv_cache_usage_perc{{{OF}}})"),),
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
            "Recent time to first token",
            "timeseries",
            (
                Query(
                    "max by (pipeline, rank) "
                    f"(windrose_recent_time_to_first_token_seconds{{{OF}}})",
                    "{{pipeline}} {{rank}}",
                ),
            ),
            unit="s",
            about="Mean of half a minute, or the longest wait; what autoscaling looks at",
        ),
        Panel(
            "Tokens a second",
            "timeseries",
            (
                Query(rate("windrose_prompt_tokens_total"), "prompts"),
                Query(rate("windrose_generation_tokens_total"), "output"),
            ),
        ),
        Panel(
            "Requests a second, by end",
            "timeseries",
            (
                Query(
                    rate("windrose_request_success_total", "finished_reason"),
                    "{{finished_reason}}",
                ),
                Query(f"{rate('windrose_requests_refused_total')} or vector(0)", "refused"),
            ),
        ),
        Panel(
            "Requests by attention actor",
            "timeseries",
            (
                Query(
                    total("windrose_num_requests_running", "pipeline, rank"), "running, {{rank}}"
                ),
                Query(
                    total("windrose_num_requests_waiting", "pipeline, rank"), "waiting, {{rank}}"
                ),
            ),
        ),
        Panel(
            "KV cache and prefix cache",
            "timeseries",
            (
                Query(f"windrose_kv_cache_usage_perc{{{OF}}}", "in use, {{rank}}"),
                Query(
                    f"{rate('windrose_prefix_cache_hits_total')} / "
                    f"({rate('windrose_prefix_cache_queries_total')} > 0)",
                    "prompt tokens found cached",
                ),
            ),
            unit="percentunit",
            most=1,
        ),
        Panel(
            "Preemptions a second",
            "timeseries",
            (Query(rate("windrose_num_preemptions_total", "pipeline, rank"), "{{rank}}"),),
        ),
        Panel(
            "Slow first tokens",
            "timeseries",
            (
                Query(f"windrose:ttft_slow:ratio5m{{{OF}}}", "five minutes"),
                Query(f"windrose:ttft_slow:ratio1h{{{OF}}}", "an hour"),
            ),
            unit="percentunit",
            about="Share that took longer than 2.5 s; the objective is 1 %",
        ),
    ),
    (MODEL,),
)

ACTORS = Dashboard(
    "windrose-actors",
    "Windrose: actors",
    tuple(
        Panel(
            f"Time of {role} actors: {phase}",
            "timeseries",
            (
                Query(
                    rate(
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
            (Query(rate("windrose_step_seconds_total", "role, phase"), "{{role}}: {{phase}}"),),
            unit="s",
            stacked=True,
        ),
        Panel(
            "Rows a second",
            "timeseries",
            (
                Query(rate("windrose_engine_rows_total", "pipeline, rank"), "attention {{rank}}"),
                Query(
                    rate("windrose_expert_actor_rows_total", "pipeline, rank"),
                    "expert {{rank}}, over layers",
                ),
            ),
        ),
        Panel(
            "Sent",
            "timeseries",
            (
                Query(
                    rate("windrose_sent_bytes_total", "role, pipeline, rank"),
                    "{{role}} {{rank}}",
                ),
            ),
            unit="Bps",
        ),
        Panel(
            "Steps a second, and micro-batches",
            "timeseries",
            (
                Query(rate("windrose_engine_steps_total", "pipeline, rank"), "steps, {{rank}}"),
                Query(f"windrose_micro_batches{{{OF}}}", "micro-batches, {{rank}}"),
            ),
        ),
    ),
    (MODEL,),
)

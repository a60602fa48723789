"""The dashboards of experts, and of recoveries and placement."""

from __future__ import annotations

from ops.grafana.panels import Dashboard, Panel, Query
from ops.grafana.promql import LAYER, MODEL, OF, rate, total

_THESE = 'layer=~"$layer"'
_IN = f"{OF}, {_THESE}"

EXPERTS = Dashboard(
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
            (Query(f"windrose:balancedness:rate1m{{{OF}}}"),),
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
            (Query(rate("windrose_expert_tokens_total", "expert", _THESE), "{{expert}}"),),
            stacked=True,
            about="A token counts for each expert its gate chose, in every layer",
        ),
        Panel(
            "Repeats of the token before",
            "timeseries",
            (
                Query(
                    f"{rate('windrose_expert_repeats_total', 'layer, choice', _THESE)}"
                    f" / on () group_left () {rate('windrose_expert_pairs_total')}",
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
    (MODEL, LAYER),
)

PLACEMENT = Dashboard(
    "windrose-placement",
    "Windrose: recoveries and placement",
    (
        Panel("Pipelines serving", "stat", (Query(total("windrose_pipeline_serving")),), width=6),
        Panel("Ranks being replaced", "stat", (Query(total("windrose_ranks_replacing")),), width=6),
        Panel("Spare actors", "stat", (Query(total("windrose_spare_actors")),), width=6),
        Panel(
            "Placement version",
            "stat",
            (Query(f"max (windrose_placement_version{{{OF}}})"),),
            width=6,
        ),
        Panel(
            "Actors lost, by role and cause",
            "timeseries",
            (Query(total("windrose_recoveries_total", "role, cause"), "{{role}}: {{cause}}"),),
        ),
        Panel(
            "Recoveries, and seconds they took",
            "timeseries",
            (
                Query(total("windrose_recovery_seconds_count", "pipeline"), "{{pipeline}}"),
                Query(total("windrose_recovery_seconds_sum", "pipeline"), "{{pipeline}}, seconds"),
            ),
        ),
        Panel(
            "Changes of the placement, by outcome",
            "timeseries",
            (Query(total("windrose_placement_changes_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "What the balancer made of the load",
            "timeseries",
            (Query(total("windrose_balance_proposals_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Copies in each layer",
            "timeseries",
            (
                Query(
                    f"sum by (pipeline, layer) (windrose_expert_holders{{{OF}}})",
                    "{{pipeline}}, layer {{layer}}",
                ),
                Query(f"windrose_redundant_experts{{{OF}}}", "{{pipeline}}: asked for beyond one"),
            ),
            width=24,
        ),
    ),
    (MODEL,),
)

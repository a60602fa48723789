"""Queries that the dashboards share, and the choices above their panels."""

from __future__ import annotations

from ops.grafana.panels import Variable

MODEL = Variable("model", "label_values(windrose_pipeline_serving, model_name)")
LAYER = Variable("layer", "label_values(windrose_expert_tokens_total, layer)")
OF = 'model_name=~"$model"'


def rate(name: str, by: str = "", where: str = "") -> str:
    """Per second, summed over all labels but `by`."""
    labels = f"{OF}, {where}" if where else OF
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({name}{{{labels}}}[$__rate_interval]))"


def total(name: str, by: str = "") -> str:
    """The value now, summed likewise."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({name}{{{OF}}})"

"""The one table of metrics, and the text that is written from it."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from actors.http.request_metrics import RequestMetrics
from actors.metrics.metric_table import BY_NAME, METRICS
from actors.metrics.metrics_text import metrics_text
from actors.metrics.tally import Series, Value


def test_every_metric_is_defined_once_and_said_what_it_is() -> None:
    assert len(BY_NAME) == len(METRICS) >= 30
    samples = [name for metric in METRICS for name in metric.sample_names]
    assert len(samples) == len(set(samples))
    for metric in METRICS:
        assert re.fullmatch(r"windrose_[a-z0-9_]+", metric.name)
        assert metric.help and not metric.name.endswith("_total")
        assert len({"model_name", "le", *metric.labels}) == len(metric.labels) + 2
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_every_metric_is_in_the_text_with_its_help_and_kind() -> None:
    families = {one.name: one for one in text_string_to_metric_families(metrics_text({}, {}, "m"))}
    assert families.keys() == BY_NAME.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (BY_NAME[name].kind, BY_NAME[name].help)


def test_layers_are_in_the_order_of_numbers() -> None:
    counts: dict[Series, Value] = {
        ("windrose_expert_tokens", str(i), "0"): (float(i),) for i in (10, 9, 2)
    }
    lines = [one for one in metrics_text(counts, {}, "m").splitlines() if one.endswith(".0")]
    assert [line.split()[-1] for line in lines] == ["2.0", "9.0", "10.0"]


def test_measurements_reach_the_text() -> None:
    metrics = RequestMetrics()
    metrics.first_tokens(1, 0.03)
    metrics.more_tokens(4, 2.0)
    text = metrics_text(metrics.counts(), {}, "m")
    assert 'time_to_first_token_seconds_bucket{le="0.025",model_name="m"} 0.0' in text
    assert 'time_to_first_token_seconds_bucket{le="0.05",model_name="m"} 1.0' in text
    assert 'time_to_first_token_seconds_sum{model_name="m"} 0.03' in text
    assert 'inter_token_latency_seconds_bucket{le="0.8",model_name="m"} 4.0' in text
    assert 'inter_token_latency_seconds_sum{model_name="m"} 2.0' in text
    assert 'generation_tokens_total{model_name="m"} 5.0' in text

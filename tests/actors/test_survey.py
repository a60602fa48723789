"""What is made of the actors' words: the JSON of /v1/experts, and what it sums up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics.metrics_text import metrics_text
from actors.pipeline.pipeline_tally import actor_counts
from actors.pipeline.survey import balancedness, experts_json, total_tokens
from tests.actors.surveyed_actors import (
    APART,
    INGRESS,
    PLACEMENT,
    TOKENS,
    actor,
    report,
    samples,
)


def test_tokens_are_summed_over_actors() -> None:
    tables = [one.expert_tokens for one in APART]
    assert total_tokens(tables) == TOKENS
    assert total_tokens(tables[2:]) == []
    assert total_tokens([]) == []


@pytest.mark.parametrize(
    ("tokens", "want"),
    [
        ([], 1.0),
        ([[0, 0, 0]], 1.0),
        ([[5, 5, 5, 5]], 1.0),
        ([[8, 0, 0, 0]], 0.25),
        ([[6, 4, 2]], 4 / 6),
        ([[6, 4, 2], [12, 0, 0], [0, 0, 0]], (4 / 6 + 1 / 3) / 2),
    ],
)
def test_balancedness_is_mean_over_max_averaged_over_layers(
    tokens: list[list[int]], want: float
) -> None:
    assert balancedness(tokens) == pytest.approx(want)


def test_experts_apart_as_json() -> None:
    body = json.loads(json.dumps(experts_json(APART, [report()], TOKENS, {}, INGRESS)))
    assert body["placement_version"] == 5
    assert body["placement"] == [[[2], [2], [3]], [[3], [2], [2, 3]]]
    assert body["tokens"] == [[6, 4, 2], [1, 2, 9]]
    assert body["balancedness"] == pytest.approx((4 / 6 + 4 / 9) / 2)
    assert [one["rank"] for one in body["actors"]] == [0, 1, 2, 3, None, None]
    assert [(one["role"], one["pid"]) for one in body["actors"][4:]] == [
        ("router", 55),
        ("ingress", 77),
    ]
    assert body["actors"][2] == {
        "pipeline": "p0",
        "rank": 2,
        "role": "expert",
        "pid": 4002,
        "node": "10.0.0.1",
        "device": "cpu",
        "phase": "serving",
        "weights_bytes": 3000,
        "start": {"import_s": 1.5, "weights_s": 0.25},
    }


def test_colocated_experts_are_on_every_attention_rank_of_their_pipeline() -> None:
    stats = [
        actor(0, "attention", expert_tokens=[[1, 2]]),
        actor(1, "attention", expert_tokens=[[3, 4]]),
        actor(0, "attention", "p1", expert_tokens=[[5, 6]]),
    ]
    body = experts_json(stats, [], [[9, 12]], {}, INGRESS)
    assert body["placement"] == [[[0, 1], [0, 1]]]
    assert body["tokens"] == [[9, 12]]


def test_a_model_without_experts_has_an_empty_placement_and_no_series_of_experts() -> None:
    stats = [actor(rank, "attention", num_rows=3, num_running=1) for rank in (0, 1)]
    body = experts_json(stats, [report(target=(), changes={})], [], {}, INGRESS)
    assert (body["placement"], body["tokens"], body["balancedness"]) == ([], [], 1.0)
    assert len(cast(list[object], body["actors"])) == 4
    counts = {series: value for one in stats for series, value in actor_counts(one).items()}
    families = text_string_to_metric_families(metrics_text(counts, {}, "dense"))
    samples = {family.name: family.samples for family in families}
    assert not samples.get("windrose_expert_tokens") and not samples.get("windrose_expert_pairs")
    assert [sample.value for sample in samples["windrose_engine_rows"]] == [3, 3]


def test_experts_have_no_ranks_while_no_attention_actor_answers() -> None:
    """Their counts outlive the actors: who shows both must find a place for each count."""
    body = experts_json([actor(2, "expert")], [report()], TOKENS, {}, INGRESS)
    assert body["placement"] == [[[] for _ in row] for row in TOKENS]
    assert body["tokens"] == TOKENS


def test_actors_that_have_not_begun_make_valid_json() -> None:
    body = experts_json([replace(actor(0, "attention"), phase="loading")], [], [], {}, INGRESS)
    assert (body["placement"], body["tokens"], body["balancedness"]) == ([], [], 1.0)
    actors = cast(list[dict[str, object]], experts_json([], [], [], {}, INGRESS)["actors"])
    assert [one["role"] for one in actors] == ["ingress"]


def test_a_pipeline_that_waits_for_an_actor_says_why() -> None:
    waiting = report(
        serving=False, obstacle="no holder", filling=(2, 3), faults={3: "CheckpointError: x"}
    )
    (told,) = cast(
        list[dict[str, Any]], experts_json(APART, [waiting], TOKENS, {}, INGRESS)["pipelines"]
    )
    assert (told["serving"], told["obstacle"]) == (False, "no holder")
    assert told["target"] == PLACEMENT
    assert told["replacing"] == [
        {"rank": 2, "fault": None},
        {"rank": 3, "fault": "CheckpointError: x"},
    ]
    found = samples(APART, waiting)
    assert found["windrose_ranks_replacing", ("p0",)] == 2

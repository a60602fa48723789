"""What is made of the actors' words: the JSON of /v1/experts, and a pipeline's part of /metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics.metrics_text import metrics_text
from actors.metrics.tally import added
from actors.pipeline.pipeline_report import BalanceReport, PipelineReport
from actors.pipeline.pipeline_tally import PipelineTally, actor_counts, shares
from actors.pipeline.recovery_log import Recovery, RecoveryLog
from actors.pipeline.survey import balancedness, experts_json, total_tokens
from actors.ranks.actor_stats import ActorIdentity, ActorStats
from actors.ranks.start_times import StartTimes


def actor(
    rank: int, role: Literal["attention", "expert"], pipeline: str = "p0", **fields: Any
) -> ActorStats:
    identity = ActorIdentity(pipeline, rank, role, 4000 + rank, "10.0.0.1", "cpu")
    stats = ActorStats(identity, "serving", None, 1000 * (rank + 1), 7, 7)
    return replace(stats, **fields)


PLACEMENT = (((2,), (2,), (3,)), ((3,), (2,), (2, 3)))
APART = [
    actor(
        0,
        "attention",
        placement_version=5,
        placement=PLACEMENT,
        expert_tokens=[[6, 3, 0], [1, 1, 7]],
        num_running=4,
        num_waiting=2,
        kv_cache_usage=0.25,
        num_preemptions=3,
        prefix_cache_queries=70,
        prefix_cache_hits=48,
        num_rows=9,
        num_steps=5,
        wait_s=3.5,
        compute_s=4.5,
        communication_s=0.75,
        micro_batches=2,
    ),
    actor(1, "attention", placement_version=5, placement=PLACEMENT, expert_tokens=[[0, 1, 2]] * 2),
    actor(
        2,
        "expert",
        num_rows=30,
        wait_s=1.5,
        compute_s=2.25,
        num_steps=6,
        start=StartTimes(10.0, 11.5, 20.0, 20.25),
    ),
    actor(
        3, "expert", num_rows=12, wait_s=0.5, compute_s=0.125, communication_s=0.0625, num_steps=6
    ),
]

TOKENS = [[6, 4, 2], [1, 2, 9]]
INGRESS = ActorIdentity("", -1, "ingress", 77, "10.0.0.1", "cpu")


def report(*recoveries: Recovery, **fields: Any) -> PipelineReport:
    log = RecoveryLog()
    for recovery in recoveries:
        log.add(recovery)
    plain = PipelineReport(
        router=ActorIdentity("p0", -1, "router", 55, "10.0.0.1", "cpu"),
        serving=True,
        obstacle=None,
        num_attention=1,
        attention=(),
        unfinished=0,
        max_model_len=64,
        placement_version=5,
        target=PLACEMENT,
        filling=(),
        faults={},
        num_spares=0,
        recoveries=tuple(log.recent),
        recovery_counts=log.counts(),
        changes={"applied": 0, "unchanged": 0, "refused": 0, "failed": 0},
        balance=BalanceReport("advise", (), {}),
    )
    return replace(plain, **fields)


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


def samples(
    stats: list[ActorStats], told: PipelineReport | None = None
) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample: (name, label values by label, without the model's) -> value."""
    tally = PipelineTally("p0", redundant_experts=1)
    tally.take(1.0, {one.identity.rank: one for one in stats})
    view = tally.view(1.0, {}, told or report())
    text = metrics_text(
        added(view.tally.values()), dict(view.gauges) | shares(view.recent_tokens), "tiny"
    )
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            assert (family.type == "counter") == sample.name.endswith("_total"), sample
            if family.type == "histogram":
                assert sample.name.removeprefix(family.name) in ("_bucket", "_sum", "_count")
            key = (sample.name, tuple(labels[label] for label in sorted(labels)))
            assert key not in found
            found[key] = sample.value
    return found


def test_metrics_of_all_actors() -> None:
    found = samples(APART)
    for name, rank, value in [
        ("windrose_num_requests_running", 0, 4),
        ("windrose_num_requests_waiting", 0, 2),
        ("windrose_kv_cache_usage_perc", 0, 0.25),
        ("windrose_placement_version", 1, 5),
        ("windrose_num_preemptions_total", 0, 3),
        ("windrose_prefix_cache_queries_total", 0, 70),
        ("windrose_prefix_cache_hits_total", 0, 48),
        ("windrose_engine_steps_total", 0, 5),
        ("windrose_engine_rows_total", 0, 9),
        ("windrose_num_requests_running", 1, 0),
        ("windrose_micro_batches", 0, 2),
        ("windrose_expert_actor_rows_total", 2, 30),
    ]:
        assert found.pop((name, ("p0", str(rank)))) == value
    tokens = {
        (key[1][1], key[1][0]): value
        for key, value in found.items()
        if key[0] == "windrose_expert_tokens_total"
    }
    assert tokens == {
        ("0", "0"): 6, ("0", "1"): 4, ("0", "2"): 2,
        ("1", "0"): 1, ("1", "1"): 2, ("1", "2"): 9,
    }  # fmt: skip
    spent = {key[1]: found[key] for key in found if key[0] == "windrose_step_seconds_total"}
    assert len(spent) == 3 * len(APART)
    for phase, place, role, seconds in [
        ("wait", "0", "attention", 3.5),
        ("compute", "0", "attention", 4.5),
        ("communication", "0", "attention", 0.75),
        ("wait", "2", "expert", 1.5),
        ("compute", "3", "expert", 0.125),
        ("communication", "3", "expert", 0.0625),
    ]:
        assert spent[phase, "p0", place, role] == seconds
    # Attention actors have no expert actor's series, nor the reverse.
    ranks = {(name, labels[-1]) for name, labels in found if labels[:1] == ("p0",)}
    assert not any(("engine" in name or "prefix" in name) and rank in "23" for name, rank in ranks)
    assert not any("expert_actor" in name and rank in "01" for name, rank in ranks)


def test_recoveries_are_told_by_role_and_cause() -> None:
    deaths = (
        Recovery("death", (("expert", 2), ("expert", 3)), 1.0, 0.25, 1.5, 0.25),
        Recovery("hang", (("attention", 1),), 2.0, 3.0, 1.0, 0.0),
        Recovery("link", (), 3.0, 0.5, 0.0, 0.5),
    )
    found = samples(APART, report(*deaths, changes={"applied": 2}))
    assert found["windrose_recoveries_total", ("death", "p0", "expert")] == 2
    assert found["windrose_recoveries_total", ("hang", "p0", "attention")] == 1
    assert found["windrose_recovery_seconds_sum", ("p0",)] == 7.0
    assert found["windrose_recovery_seconds_count", ("p0",)] == 3
    buckets = {
        labels[0]: value
        for (name, labels), value in found.items()
        if name == "windrose_recovery_seconds_bucket"
    }
    assert (buckets["0.8"], buckets["1.5"], buckets["3.0"], buckets["6.0"]) == (0, 1, 2, 3)
    assert buckets["+Inf"] == 3
    assert found["windrose_placement_changes_total", ("applied", "p0")] == 2
    told = cast(
        list[dict[str, object]],
        experts_json(APART, [report(*deaths)], TOKENS, {}, INGRESS)["recoveries"],
    )
    assert [one["total_s"] for one in told] == [2.0, 4.0, 1.0]
    assert told[0]["dead"] == (("expert", 2), ("expert", 3))


def test_only_the_last_recoveries_are_kept_in_full() -> None:
    many = [Recovery("death", (("expert", 2),), float(i), 0.5, 0.0, 0.0) for i in range(150)]
    told = report(*many)
    assert [recovery.at_s for recovery in told.recoveries] == [float(i) for i in range(50, 150)]
    assert told.recovery_counts.lost == {("expert", "death"): 150}
    assert told.recovery_counts.seconds[2:4] == (0.0, 150.0)  # up to 0.4 s, up to 0.8 s


def test_metrics_without_actors_are_valid() -> None:
    found = samples([])
    assert found["windrose_pipeline_serving", ("p0",)] == 1
    assert not any("expert_tokens" in name or "engine" in name for name, _labels in found)


def test_holders_are_the_ranks_that_serve() -> None:
    apart, colocated = samples(APART), samples([actor(0, "attention", expert_tokens=[[1, 2]])])
    without_3 = samples(APART[:3])

    def holders(found: dict[tuple[str, tuple[str, ...]], float]) -> list[float]:
        return [v for (name, _), v in sorted(found.items()) if name == "windrose_expert_holders"]

    # By expert, then layer.
    assert holders(apart) == [1, 1, 1, 1, 1, 2]
    assert holders(without_3) == [1, 0, 1, 1, 0, 1]
    assert holders(colocated) == [1, 1]
    assert apart["windrose_redundant_experts", ("p0",)] == 1


def test_shares_are_of_the_last_minute() -> None:
    tally = PipelineTally("p0", 0)
    for now_s, tokens in ((0.0, [[80, 20, 0]]), (50.0, [[80, 40, 0]]), (61.0, [[80, 40, 20]])):
        tally.take(now_s, {0: actor(0, "attention", expert_tokens=tokens)})
    recent = tally.view(61.0, {}, report()).recent_tokens
    assert recent == [[0, 20, 20]]
    assert [*shares(recent).values()] == [0, 0.5, 0.5]
    assert [*shares([[0, 0, 0, 0]]).values()] == [0, 0, 0, 0]


def test_a_pipelines_counts_outlive_its_actors() -> None:
    tally = PipelineTally("p0", 0)
    tally.take(1.0, {one.identity.rank: one for one in APART})
    before = added(tally.view(1.0, {}, report()).tally.values())
    successor = actor(0, "attention", expert_tokens=[[1, 0, 0], [0, 1, 0]], num_rows=1)
    identity = replace(successor.identity, pid=5000)
    tally.take(2.0, {0: replace(successor, identity=identity)})
    after = added(tally.view(2.0, {}, report()).tally.values())
    grown = {series: value for series, value in after.items() if value != before[series]}
    assert grown == {
        ("windrose_expert_tokens", "0", "0"): (7,),
        ("windrose_expert_tokens", "1", "1"): (3,),
        ("windrose_engine_rows", "p0", "0"): (10,),
    }

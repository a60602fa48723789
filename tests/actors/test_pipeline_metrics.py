"""A pipeline's part of /metrics: each actor's figures, recoveries, and who holds which expert."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from actors.metrics.tally import Tally, added
from actors.pipeline.pipeline_tally import PipelineTally, shares
from actors.pipeline.recovery_log import Recovery
from actors.pipeline.survey import experts_json
from tests.actors.surveyed_actors import APART, INGRESS, TOKENS, actor, report, samples


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


def test_a_view_is_of_all_that_was_heard_or_of_the_pipeline_alone() -> None:
    tally = PipelineTally("p0", 0)
    heard: Tally = {"ingress/a": {("x",): (1.0,)}}
    alone = tally.view(0.0, heard, report(), whole=False)
    assert alone.tally.keys() == {"pipeline/p0"}
    whole = tally.view(1.0, {}, report())
    assert whole.tally.keys() == {"pipeline/p0", "ingress/a"}, "what was heard is kept"

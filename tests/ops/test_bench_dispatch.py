"""`python -m ops.bench dispatch` with real processes, and the plan they share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ops.bench import dispatch
from ops.bench.dispatch_ranks import EXPERTS, DispatchPlan, EchoShard
from tests.ops.bench_runs import check_envelope, leave_at_once, run

PLAN = DispatchPlan(
    expert_actors=3, rows=(1, 9), hidden=16, top_k=2, layers=3, iterations=4, rounds=2,
    dtype="float32", seed=7,
)  # fmt: skip


def holders(plan: DispatchPlan, rows: int, layer: int) -> list[set[int]]:
    """Of each row, the ranks that hold one of its experts; 8 experts on 3 ranks are 3, 3, 2."""
    shares = {2: (4, 4), 3: (3, 3, 2)}[plan.expert_actors]
    rank_of = [rank for rank, share in enumerate(shares, 1) for _ in range(share)]
    return [{rank_of[expert] for expert in row} for row in plan.routing(rows, layer)[0].tolist()]


def test_every_layer_is_routed_to_different_experts_and_the_same_ones_everywhere() -> None:
    seen = []
    for layer in range(PLAN.layers):
        ids_TK, weights_TK = PLAN.routing(200, layer)
        assert ids_TK.shape == weights_TK.shape == (200, 2)
        assert all(len(set(row)) == 2 for row in ids_TK.tolist())
        assert weights_TK.sum(1).tolist() == [1.0] * 200
        counts = torch.bincount(ids_TK.flatten(), minlength=EXPERTS)
        assert counts.min() > 20  # 50 each is even; 4 standard deviations less is 25
        assert torch.equal(replace(PLAN).routing(200, layer)[0], ids_TK)
        seen.append(ids_TK)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(replace(PLAN, seed=8).routing(200, 0)[0], seen[0])


def test_ranks_know_how_many_rows_come() -> None:
    for rows in PLAN.rows:
        for layer, counts in enumerate(PLAN.rows_for(rows)):
            expected = holders(PLAN, rows, layer)
            assert counts == {rank: sum(rank in ranks for ranks in expected) for rank in PLAN.ranks}


def test_turns_warm_up_first_and_take_all_ways_in_each_round() -> None:
    ways = ("dispatch", "raw", "gloo")
    assert list(PLAN.turns()) == [
        (rows, index, way) for rows in (1, 9) for index in (-1, 0, 1) for way in ways
    ]


def test_echoing_experts_give_back_what_they_get() -> None:
    x_RD = torch.randn(3, 4)
    y_RD = EchoShard({}).forward(0, x_RD, torch.zeros(3, 2), torch.ones(3, 2))
    assert torch.equal(y_RD, x_RD)


def test_dispatch_is_measured_beside_the_bare_messages(capsys: pytest.CaptureFixture[str]) -> None:
    status, line, err = run(
        capsys, "dispatch", "--expert-actors", 2, "--rows", "1,9", "--hidden", 16, "--layers", 3,
        "--iterations", 4, "--rounds", 2, "--seed", 7,
    )  # fmt: skip
    assert status == 0
    check_envelope(line)
    assert line["config"]["topology"] == [1, 2]
    assert [result["rows"] for result in line["results"]] == [1, 9]
    plan = replace(PLAN, expert_actors=2, dtype="bfloat16")
    for result in line["results"]:
        rows = result["rows"]
        assert result["layers_timed"] == 3 * 4 * 2
        counts = [
            sum(rank in ranks for ranks in holders(plan, rows, layer))
            for layer in range(3)
            for rank in (1, 2)
        ]
        row_bytes = 16 * 2
        assert result["returned_bytes"] == round(sum(counts) * row_bytes / 3)
        # count and padding, then ids and weights of 4 bytes each, to multiples of 16; rows
        sent = sum(16 + n * 2 * 8 + n * row_bytes for n in counts)
        assert result["sent_bytes"] == round(sent / 3)
        for key in ("layer_us", "raw_us", "raw_gloo_us"):
            assert 0 < result[key]["p50"] <= result[key]["p99"]
        for ratio, key in (("ratio", "raw_us"), ("ratio_to_gloo", "raw_gloo_us")):
            assert result[ratio] == pytest.approx(
                result["layer_us"]["p50"] / result[key]["p50"], rel=1e-3
            )
    assert "raw us" in err and "gloo us" in err


def test_an_expert_process_that_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "serve_expert_rank", leave_at_once)
    with pytest.raises(ChildProcessError, match="expert process"):
        dispatch.bench_dispatch(replace(PLAN, expert_actors=1))

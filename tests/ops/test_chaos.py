"""Who is struck, when and how, and when the server is whole again."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ops.chaos.errors import ChaosError
from ops.chaos.strike import Actor, Dice, actors_of, check_victims, end_frozen, strike
from ops.chaos.striker import is_whole
from tests.ops.chaos_stub import stand_in
from tests.ops.chaos_values import ACTORS, actor, struck


def test_choices_come_from_the_seed_alone() -> None:
    def choices(seed: int, pid: int) -> list[object]:
        dice = Dice(("expert", "attention"), "mix", 5.0, seed)
        actors = [replace(one, pid=pid + i) for i, one in enumerate(ACTORS)]
        drawn: list[object] = []
        for _ in range(50):
            reach, how, victims = dice.choose(actors)
            drawn += [dice.wait(), reach, how, [(one.role, one.rank) for one in victims]]
        return drawn

    assert choices(1, pid=10) == choices(1, pid=5000)
    assert choices(1, pid=10) != choices(2, pid=10)


def test_all_kinds_of_strikes_come() -> None:
    dice = Dice(("router", "expert", "attention"), "mix", 5.0, 7)
    seen: Counter[str] = Counter()
    hit: Counter[Actor] = Counter()
    for _ in range(600):
        reach, how, victims = dice.choose(ACTORS)
        seen.update((reach, how))
        hit.update(victims)
        roles = [victim.role for victim in victims]
        if reach == "all":
            assert victims == tuple(one for one in ACTORS if one.role == roles[0])
        else:
            assert len(victims) == len(set(roles)) == {"one": 1, "two": 2}[reach]
    assert set(hit) == set(ACTORS)
    assert seen["one"] > seen["two"] > seen["all"] > 0
    assert abs(seen["kill"] - seen["stop"]) < 120, "of 600, five standard deviations"


def test_only_asked_roles_are_struck_and_one_role_is_never_two() -> None:
    dice = Dice(("expert",), "kill", 5.0, 7)
    for _ in range(100):
        reach, how, victims = dice.choose(ACTORS)
        assert reach != "two"
        assert how == "kill"
        assert {victim.role for victim in victims} == {"expert"}
    assert dice.choose([actor("attention", 0)])[2] == ()


def test_waits() -> None:
    dice = Dice(("expert",), "kill", 4.0, 7)
    waits = [dice.wait() for _ in range(2000)]
    calm = [wait_s for wait_s, in_recovery in waits if not in_recovery]
    soon = [wait_s for wait_s, in_recovery in waits if in_recovery]
    assert 0.2 < len(soon) / len(waits) < 0.3
    assert max(soon) < 3.0
    assert sum(wait_s < 0.3 for wait_s in soon) > len(soon) / 2
    # An exponential's mean where 3 means are the most: 1 - exp(-3) of it.
    assert sum(calm) / len(calm) == pytest.approx(4.0 * 0.95, rel=0.1)
    assert max(calm) == 12.0


def test_reads_who_is_there() -> None:
    entry = {"role": "expert", "rank": 1, "pid": 5, "pipeline": "p", "phase": "serving", "x": 1}
    spare = {"role": "spare", "rank": None, "pid": 6}
    assert actors_of({"actors": [spare, entry]}) == (
        Actor("spare", "", 0, 6, ""),
        Actor("expert", "p", 1, 5, "serving"),
    )
    bodies: list[object] = [[], {}, {"actors": [{"role": "expert"}]}, {"actors": [3]}]
    for body in bodies:
        with pytest.raises(ChaosError, match="does not list actors"):
            actors_of(body)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = stand_in("ray::ExpertActor.run")
    yield started
    started.kill()
    started.wait()


def test_refuses_before_it_strikes(process: subprocess.Popen[bytes]) -> None:
    here = actor("expert", 2, pid=process.pid)
    check_victims([here, actor("attention", 0, pid=1 << 30)], ["expert"])
    with pytest.raises(ChaosError, match=r"--kill router: .* only 1 expert"):
        check_victims([here], ["expert", "router"])
    with pytest.raises(ChaosError, match=r"expert 3 \(pid \d+\) is no Ray actor of this machine"):
        check_victims([here, actor("expert", 3, pid=os.getpid())], ["expert"])


def test_kills_and_knows_who_was_dead(process: subprocess.Popen[bytes]) -> None:
    victim = actor("expert", 2, pid=process.pid)
    assert strike([victim], "kill") == (victim,)
    assert process.wait() == -9
    assert strike([victim, actor("expert", 3, pid=os.getpid())], "kill") == ()


def test_what_stays_frozen_is_ended(process: subprocess.Popen[bytes]) -> None:
    victim = actor("expert", 2, pid=process.pid)
    assert end_frozen([victim]) == (), "it runs"
    strike([victim], "stop")
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert end_frozen([victim]) == (victim,)
    assert process.wait() == -9
    assert end_frozen([victim]) == ()


def test_whole_again() -> None:
    baseline = Counter({"attention": 1, "expert": 2, "spare": 1})
    victim = actor("expert", 2, pid=50)
    now = [actor("attention", 0), actor("expert", 1), actor("expert", 2, pid=51)]
    spare = actor("spare", 0, phase="loaded")
    assert is_whole([struck(0, None, victim)], now, baseline), "a spare may be on its way"
    assert not is_whole([struck(0, None, victim)], [*now[:2], victim], baseline)
    assert not is_whole([struck(0, None, victim)], now[:2], baseline)
    loading = [*now[:2], actor("expert", 2, pid=51, phase="loading")]
    assert not is_whole([struck(0, None, victim)], loading, baseline)
    also = struck(0, None, actor("spare", 0, pid=60))
    assert not is_whole([struck(0, None, victim), also], now, baseline)
    assert is_whole([struck(0, None, victim), also], [*now, spare], baseline)

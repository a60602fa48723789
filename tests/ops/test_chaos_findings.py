"""What chaos concludes: gaps by their cause, counts of requests, downtime, leaks."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ops.chaos.census import Census, Held, kind_of
from ops.chaos.gaps import Window, gaps_by_cause, longest_gap_s, windows
from ops.chaos.leaks import KV_USAGE, RUNNING, WAITING, Holdings, leaks
from ops.chaos.load import Failure, FailureKind, Outcome
from ops.chaos.strike import Actor
from ops.chaos.verdict import first_difference, tally
from ops.chaos.watch import Downtime, Recoveries, samples
from tests.ops.chaos_values import ACTORS, actor, struck


def test_causes_and_windows() -> None:
    expert, attention = actor("expert", 2), actor("attention", 0)
    strikes = [
        struck(10.0, 12.0, expert),
        struck(20.0, None, attention, expert, how="stop"),
        struck(13.0, 14.0, expert, every=True),
        struck(15.0, 17.0, expert),
        struck(16.0, 16.5, attention),
    ]
    assert windows(strikes, end_s=30.0) == [
        Window("kill:expert", 1, 10.0, 12.0),
        Window("kill:all expert", 1, 13.0, 14.0),
        Window("several", 2, 15.0, 17.0),
        Window("stop:attention+expert", 1, 20.0, 30.0),
    ]


def outcome(*times_s: float, kind: FailureKind | None = None, tokens: int | None = None) -> Outcome:
    """Sent at the first time, ended at the last, an event at each between."""
    failure = None if kind is None else Failure(kind, kind)
    token_ids = tuple(range(len(times_s) - 2 if tokens is None else tokens))
    return Outcome(0, times_s[0], times_s[-1], times_s[1:-1], token_ids, failure)


@pytest.mark.parametrize(
    ("one", "gap_s"),
    [
        pytest.param(outcome(1, 2, 9.5, 13, 18, 18), 5.0, id="begins-within"),
        pytest.param(outcome(1, 2, 9.5, 10.5, 11, 11), 1.0, id="ends-within"),
        pytest.param(outcome(1, 9, 15, 15), 6.0, id="around"),
        pytest.param(outcome(11, 11.5, 11.6, 11.6), 0.5, id="first-token"),
        pytest.param(outcome(9, 9.5, 20, kind="silent"), 10.5, id="never-again"),
        pytest.param(outcome(1, 10, 10), None, id="before"),
        pytest.param(outcome(14, 18, 18), None, id="after"),
        pytest.param(outcome(9, 9.5, 20), None, id="only-the-end-is-late"),
    ],
)
def test_longest_gap_in_a_window(one: Outcome, gap_s: float | None) -> None:
    assert longest_gap_s(one, Window("kill:expert", 1, 10.0, 14.0)) == gap_s


def test_gaps_by_cause() -> None:
    found = [Window("kill:expert", 1, 10.0, 14.0), Window("kill:expert", 1, 20.0, 21.0)]
    found.append(Window("several", 3, 40.0, 41.0))
    outcomes = [outcome(9, 10, 10 + gap, 10 + gap) for gap in range(1, 4)]
    outcomes.append(outcome(19, 20, 24, 24))
    calm = [outcome(0, 2, 3, 5, 5), outcome(0, 1, 2, 2)]
    assert gaps_by_cause(found, outcomes, calm) == {
        "calm": {"n": 3, "p50_s": 1.0, "p99_s": 1.98, "max_s": 2.0},
        "calm longest": {"n": 2, "p50_s": 1.5, "p99_s": 1.99, "max_s": 2.0},
        "kill:expert": {"n": 2, "p50_s": 2.5, "p99_s": 3.97, "max_s": 4.0},
        "several": {"n": 3, "p50_s": None, "p99_s": None, "max_s": None},
    }


def test_tally() -> None:
    twins = {0: (0, 1, 2)}
    same = outcome(0, 1, 2, 3, 4)
    lost, repeated = outcome(0, 1, 2, 4), replace(same, token_ids=(0, 1, 1, 2))
    broken = outcome(10, 11, 12, kind="broken")
    refused = replace(broken, failure=Failure("status", "status 503: full"))
    outcomes = [same, lost, repeated, broken, broken, refused]
    found = tally(outcomes, twins, [struck(9, 20, actor("router", 0))])
    assert (found.requests, found.failed, found.changed, found.broken_by_ingress) == (6, 3, 2, 0)
    assert found.tokens == 3 + 2 + 4 + 3
    assert found.reasons == {"broken": 2, "status 503: full": 1}
    found = tally(outcomes, twins, [struck(9, 20, actor("ingress", 0))])
    assert (found.failed, found.broken_by_ingress) == (1, 2), "an error answer is never excused"
    later = tally(outcomes, twins, [struck(13, 20, actor("ingress", 0))])
    earlier = tally(outcomes, twins, [struck(1, 5, actor("ingress", 0))])
    assert later.broken_by_ingress == earlier.broken_by_ingress == 0
    assert "4 tokens, its twin 3; the first 2" in first_difference(repeated, twins[0])


def test_downtime() -> None:
    downtime = Downtime()
    polls = [(True, 0.0), (False, 1.0), (False, 2.0), (True, 3.0), (True, 4.0), (False, 5.0)]
    for healthy, asked_s in polls:
        downtime.note(healthy, asked_s, asked_s + 0.5)
    assert (downtime.total_s, downtime.longest_s) == (2.5, 2.5)
    downtime.end(6.0)
    assert (downtime.total_s, downtime.longest_s) == (3.5, 2.5)


def test_recoveries_outlive_the_list_they_were_in() -> None:
    def listed(at_s: float, *dead: tuple[str, int]) -> dict[str, object]:
        return {"cause": "death", "dead": list(dead), "at_s": at_s, "total_s": at_s / 10}

    recoveries = Recoveries()
    recoveries.note([listed(1.0, ("expert", 1))])
    recoveries.forget()
    recoveries.note([listed(1.0, ("expert", 1)), listed(20.0, ("expert", 1), ("attention", 0))])
    recoveries.note([listed(40.0, ("expert", 1))])  # of another router
    assert recoveries.summary(metric_before=1.0, metric_after=4.0) == {
        "n": 2,
        "replaced": {"attention:death": 1, "expert:death": 2},
        "metric": 3.0,
        "total_s": {"median": 3.0, "min": 2.0, "max": 4.0},
    }
    assert recoveries.summary(5.0, 2.0)["metric"] == 2.0, "a counter that began anew"
    assert Recoveries().summary(0.0, None)["total_s"] is None


def test_samples_are_summed_over_labels() -> None:
    text = 'windrose_x{rank="0"} 1\nwindrose_x{rank="1"} 2.5\nwindrose_y_total 4\n'
    assert samples(text) == {"windrose_x": 3.5, "windrose_y_total": 4.0}


def held(pid: int, kind: str, fds: int = 50, mib: int = 100, frozen: bool = False) -> Held:
    return Held(pid, float(pid), kind, fds, mib << 20, frozen)


PROCESSES = (
    held(1, "raylet"),
    held(2, "ray::AttentionActor", mib=700),
    held(3, "ray::ExpertActor"),
    held(4, "ray::SpareActor"),
    held(5, "log_monitor.py"),
)
AT_REST = {RUNNING: 0.0, WAITING: 0.0, KV_USAGE: 0.0}
BEFORE = Holdings(Census(PROCESSES, 1, 1 << 20), ACTORS, AT_REST)


def after(
    *processes: Held, files: int = 1, shm_mib: int = 1, actors: tuple[Actor, ...] = ACTORS,
    metrics: dict[str, float] = AT_REST,
) -> Holdings:  # fmt: skip
    return Holdings(Census(processes, files, shm_mib << 20), actors, metrics)


@pytest.mark.parametrize(
    ("then", "sentences"),
    [
        pytest.param(BEFORE, [], id="as-before"),
        pytest.param(
            after(*PROCESSES[:2], held(6, "ray::SpareActor", fds=99), *PROCESSES[3:]), [],
            id="a-spare-took-over",
        ),
        pytest.param(
            after(*PROCESSES, *(held(10 + i, "ray::IDLE") for i in range(9))), [],
            id="idle-workers-are-rays",
        ),
        pytest.param(
            after(*PROCESSES, held(6, "ray::ExpertActor", mib=1)), ["4 processes of actors, 3"],
            id="process",
        ),
        pytest.param(
            after(*PROCESSES[:2], held(3, "ray::ExpertActor", frozen=True), *PROCESSES[3:]),
            [r"ray::ExpertActor \(pid 3\) is still frozen"], id="frozen",
        ),
        pytest.param(
            after(held(1, "raylet", fds=71), *PROCESSES[1:4], held(5, "log_monitor.py", fds=249)),
            [r"raylet \(pid 1\) has 71 files open, 50 before"], id="files",
        ),
        pytest.param(
            after(held(1, "raylet", mib=266), *PROCESSES[1:]), ["1266 MiB of memory, 1100 before"],
            id="memory",
        ),
        pytest.param(after(held(1, "raylet", mib=264), *PROCESSES[1:]), [], id="within-noise"),
        pytest.param(
            after(*PROCESSES, files=2, shm_mib=300), ["2 files in /dev/shm", "300 MiB in /dev/shm"],
            id="shared-memory",
        ),
        pytest.param(
            after(*PROCESSES, actors=ACTORS[1:]), ["1 attention actors, 2 before"], id="too-few"
        ),
        pytest.param(
            after(*PROCESSES, metrics={RUNNING: 2.0, WAITING: 0.0, KV_USAGE: 0.25}),
            ["requests running .* is 2", "KV cache in use .* is 0.25"], id="not-at-rest",
        ),
    ],
)  # fmt: skip
def test_leaks(then: Holdings, sentences: list[str]) -> None:
    found = leaks(BEFORE, then)
    assert len(found) == len(sentences), found
    for sentence, pattern in zip(found, sentences, strict=True):
        assert re.search(pattern, sentence)


def test_a_server_without_its_metrics_is_not_at_rest() -> None:
    found = leaks(BEFORE, Holdings(BEFORE.census, ACTORS, {}))
    assert [f"/metrics has no {name}" for name in AT_REST] == found


@pytest.mark.parametrize(
    ("cmdline", "kind"),
    [
        (["ray::ServeController.listen_for_change", ""], "ray::ServeController"),
        (["/usr/bin/python", "-u", "/x/log_monitor.py", "--a"], "log_monitor.py"),
        (["/opt/haproxy", "-f", "x"], "haproxy"),
        ([], "gone"),
    ],
)
def test_kinds(cmdline: list[str], kind: str) -> None:
    assert kind_of(cmdline, "gone") == kind

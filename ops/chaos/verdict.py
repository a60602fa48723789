"""What the requests of a run say of the server: failed, changed, or as their twins. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ops.chaos.load import Outcome
from ops.chaos.strike import Strike

_REASONS_SHOWN = 8
# A proxy reports the end of a connection, and leaves off the one behind it, a little later.
_INGRESS_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of requests; the ones that failed or were broken off are not compared."""

    requests: int
    failed: int
    changed: int
    broken_by_ingress: int
    tokens: int
    reasons: dict[str, int]  # of failures, most frequent first


def broken_by_ingress(outcome: Outcome, strikes: Sequence[Strike]) -> bool:
    """Whether it failed as a request must whose ingress was struck.

    Its connection broke, or the proxy in front answered in the ingress's place, while an ingress
    was being replaced. No request can outlive the process at the other end of its connection.
    """
    if outcome.failure is None or outcome.failure.kind not in ("broken", "proxy"):
        return False
    return any(
        strike.at_s <= outcome.ended_s
        and (strike.over_s is None or outcome.ended_s <= strike.over_s + _INGRESS_GRACE_S)
        for strike in strikes
        if any(victim.role == "ingress" for victim in strike.victims)
    )


def changed(outcomes: Sequence[Outcome], twins: Mapping[int, tuple[int, ...]]) -> list[Outcome]:
    """Those that ended well with other tokens than their twin: lost, repeated or different."""
    return [
        outcome
        for outcome in outcomes
        if outcome.failure is None and outcome.token_ids != twins[outcome.request]
    ]


def tally(
    outcomes: Sequence[Outcome], twins: Mapping[int, tuple[int, ...]], strikes: Sequence[Strike]
) -> Tally:
    """Count what became of the requests. Every request has its twin in `twins`."""
    broken = [broken_by_ingress(outcome, strikes) for outcome in outcomes]
    reasons = Counter(
        outcome.failure.reason
        for outcome, excused in zip(outcomes, broken, strict=True)
        if outcome.failure is not None and not excused
    )
    return Tally(
        requests=len(outcomes),
        failed=reasons.total(),
        changed=len(changed(outcomes, twins)),
        broken_by_ingress=sum(broken),
        tokens=sum(len(outcome.token_ids) for outcome in outcomes),
        reasons=dict(reasons.most_common(_REASONS_SHOWN)),
    )


def first_difference(outcome: Outcome, twin: tuple[int, ...]) -> str:
    """Where a changed answer leaves its twin, for people."""
    same = 0
    for one, other in zip(outcome.token_ids, twin, strict=False):
        if one != other:
            break
        same += 1
    return (
        f"request {outcome.request}: {len(outcome.token_ids)} tokens, its twin {len(twin)}; "
        f"the first {same} are the same"
    )

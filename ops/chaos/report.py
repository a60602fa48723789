"""What a run found, as a table for people and as one JSON line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from ops.bench import environment
from ops.bench.report import shown, table
from ops.chaos.result import Found


def with_leaks(found: Found, further: Sequence[str]) -> Found:
    """The same with what turned out later."""
    return replace(found, leaks=(*found.leaks, *further))


def to_json(found: Found) -> dict[str, Any]:
    """The result, and what it depends on."""
    commit, dirty = environment.commit()
    tally = asdict(found.tally)
    reasons = tally.pop("reasons")
    return {
        "chaos": asdict(found.settings),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        **tally,
        "failures": reasons,
        "calm": found.calm,
        "strikes": sum(found.strikes.values()),
        "strikes_by_cause": found.strikes,
        "unrecovered": found.unrecovered,
        "gaps": found.gaps,
        "recoveries": found.recoveries,
        "health_down_s": found.health_down_s,
        "healthy": found.healthy,
        "leaks": {"found": list(found.leaks), **found.held},
        "passed": found.passed,
    }


def text(found: Found) -> str:
    """For people."""
    rows = [
        [cause, str(gap["n"]), *(shown(gap[key]) for key in ("p50_s", "p99_s", "max_s"))]
        for cause, gap in found.gaps.items()
    ]
    tally = found.tally
    lines = [
        table(["longest gap of a stream", "n", "p50 s", "p99 s", "max s"], rows),
        f"{tally.requests} requests, {tally.tokens} tokens: {tally.failed} failed, "
        f"{tally.changed} changed, {tally.broken_by_ingress} broken by the death of an ingress",
        f"{sum(found.strikes.values())} strikes, {found.unrecovered} without an end; "
        f"{found.recoveries['n']} recoveries; /health down {found.health_down_s['total']:g} s, "
        f"at most {found.health_down_s['longest']:g} s at once",
        *(f"{count} x {reason}" for reason, count in tally.reasons.items()),
        *(f"left over: {leak}" for leak in found.leaks),
        "passed" if found.passed else "NOT passed",
    ]
    return "\n".join(lines)

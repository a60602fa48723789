"""What routers say of pipelines, for tests of who listens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.pipeline.pipeline_report import BalanceReport, PipelineReport
from actors.pipeline.recovery_log import RecoveryLog
from actors.ranks.actor_stats import ActorIdentity


def report(name: str, **fields: Any) -> PipelineReport:
    """One that serves, and is idle."""
    plain = PipelineReport(
        router=ActorIdentity(name, -1, "router", 55, "10.0.0.1", "cpu"),
        serving=True,
        obstacle=None,
        unfinished=0,
        num_attention=2,
        attention=(),
        max_model_len=64,
        placement_version=0,
        target=(),
        filling=(),
        faults={},
        num_spares=0,
        recoveries=(),
        recovery_counts=RecoveryLog().counts(),
        changes={},
        balance=BalanceReport("off", (), {}),
    )
    return replace(plain, **fields)

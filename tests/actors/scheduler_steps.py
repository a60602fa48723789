"""Running a scheduler step by step, its integrity checked on the way."""

from __future__ import annotations

from actors.messages import TokenEvent
from actors.scheduling.scheduler import Scheduler, StepPlan


def finish(scheduler: Scheduler, plan: StepPlan, token: int = 7) -> list[TokenEvent]:
    """Finish a step in which every chunk that samples draws `token`."""
    events = scheduler.finish_step(plan, [(token, None)] * len(plan.sampling_chunks()))
    scheduler.check_integrity()
    return events


def step(scheduler: Scheduler, token: int = 7) -> tuple[StepPlan, list[TokenEvent]]:
    """Plan a step and finish it."""
    plan = scheduler.schedule()
    scheduler.check_integrity()
    return plan, finish(scheduler, plan, token)

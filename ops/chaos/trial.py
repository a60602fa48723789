"""One run from beginning to end: calm, strikes, rest."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from ops.bench.report import rounded
from ops.chaos.census import count, roots_of
from ops.chaos.errors import ChaosError
from ops.chaos.gaps import gaps_by_cause, windows
from ops.chaos.leaks import Holdings, leaks
from ops.chaos.load import Load, Outcome, stream_client
from ops.chaos.pool import Request, endless, make_pool
from ops.chaos.result import Found, Settings
from ops.chaos.strike import Dice, Strike, check_victims, end_frozen
from ops.chaos.striker import Striker
from ops.chaos.verdict import changed, first_difference, tally
from ops.chaos.watch import Downtime, Watch

REQUESTS_PER_STREAM = 2
_CALM_REST_S = 2.0  # a finished request's blocks are freed behind the step that runs
_RECOVERIES = "windrose_recoveries_total"
_DIFFERENCES_SHOWN = 5


async def run(settings: Settings, api_key: str | None = None) -> Found:
    """Strike a running server under load and look at what comes of it; progress goes to stderr.

    Raises:
        ValueError: settings that the server's model does not allow.
        ChaosError: the server does not answer, lacks a role, is not on this machine, or fails
            requests before it is struck.
    """
    watch = Watch(settings.url, api_key)
    try:
        async with stream_client(settings.url, api_key=api_key) as client:
            model = await watch.model()
            actors = await watch.actors()
            check_victims(actors, settings.kill)
            pool = make_pool(
                settings.streams * REQUESTS_PER_STREAM,
                settings.max_tokens,
                settings.vocab_size,
                model.max_model_len,
                settings.seed,
            )
            load = Load(client, model.name, settings.streams)
            return await _Trial(settings, watch, load, pool).run()
    finally:
        await watch.close()


class _Trial:
    """The parts of a run and what each leaves for the next."""

    def __init__(
        self, settings: Settings, watch: Watch, load: Load, pool: Sequence[Request]
    ) -> None:
        self._settings = settings
        self._watch = watch
        self._load = load
        self._pool = pool
        self._downtime = Downtime()
        self._calm: list[Outcome] = []
        self._twins: dict[int, tuple[int, ...]] = {}
        self._began_s = 0.0
        self._striker: Striker

    async def run(self) -> Found:
        """All parts."""
        calm_changed = await self._answer_calmly()
        await asyncio.sleep(_CALM_REST_S)
        actors = await self._watch.actors()
        self._roots = roots_of(actor.pid for actor in actors)
        before = await self._holdings()
        dice = Dice(
            self._settings.kill, self._settings.signal, self._settings.every_s, self._settings.seed
        )
        self._striker = Striker(self._watch, actors, dice, self._load.has_moved_since, self._tell)
        self._watch.recoveries.forget()
        try:
            outcomes = await self._answer_under_strikes()
            end_s = perf_counter()
            await asyncio.sleep(self._settings.settle_s)
            healthy = await self._watch.healthy()
            after: Holdings | None = None
            try:
                after = await self._holdings()
                found = leaks(before, after)
            except ChaosError as error:
                found = [f"afterwards: {error}"]
        finally:
            end_frozen(self._striker.victims)  # the census has named them
        strikes = self._striker.strikes
        for outcome in changed(outcomes, self._twins)[:_DIFFERENCES_SHOWN]:
            _say(f"changed: {first_difference(outcome, self._twins[outcome.request])}")
        return Found(
            settings=self._settings,
            tally=tally(outcomes, self._twins, strikes),
            calm={"requests": len(self._calm), "changed": calm_changed},
            strikes=dict(sorted(Counter(strike.cause for strike in strikes).items())),
            unrecovered=sum(strike.over_s is None for strike in strikes),
            gaps=gaps_by_cause(windows(strikes, end_s), outcomes, self._calm),
            recoveries=self._watch.recoveries.summary(
                before.metrics.get(_RECOVERIES, 0.0),
                after.metrics.get(_RECOVERIES, 0.0) if after is not None else None,
            ),
            health_down_s={
                "total": rounded(self._downtime.total_s),
                "longest": rounded(self._downtime.longest_s),
            },
            healthy=healthy,
            leaks=tuple(found),
            held={
                "before": before.to_json(),
                "after": after.to_json() if after is not None else None,
            },
        )

    async def _answer_calmly(self) -> int:
        """Every request twice, the second time in other company, for the twins.

        Those whose two answers differ are asked no more: of strikes they would tell nothing.
        Returns how many.
        """
        began_s = perf_counter()
        self._calm = await self._undisturbed(self._pool)
        self._twins = {outcome.request: outcome.token_ids for outcome in self._calm}
        again = await self._undisturbed(self._pool[::-1])
        self._calm = [*self._calm, *again]
        unsteady = {outcome.request for outcome in changed(again, self._twins)}
        self._pool = [request for request in self._pool if request.index not in unsteady]
        _say(f"calm: {len(again)} requests, twice, in {perf_counter() - began_s:.1f} s")
        if unsteady:
            _say(
                f"calm: {len(unsteady)} answers differed without any strike, from rounding that "
                "depends on what runs beside them; these requests are left out"
            )
        if not self._pool:
            raise ChaosError("no request was answered twice alike without any strike")
        return len(unsteady)

    async def _undisturbed(self, requests: Sequence[Request]) -> list[Outcome]:
        outcomes = await self._load.run(requests)
        failures = [one.failure.reason for one in outcomes if one.failure is not None]
        if failures:
            raise ChaosError(
                f"{len(failures)} of {len(requests)} requests failed before any strike: "
                f"{failures[0]}"
            )
        return outcomes

    async def _answer_under_strikes(self) -> list[Outcome]:
        """Load until the last recovery is over, then until the last answer has ended."""
        self._began_s = perf_counter()
        requests = endless(self._pool, self._settings.seed)
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(self._watch.poll_health(self._downtime))
            answering = tasks.create_task(self._load.run(requests))
            await self._striker.run(self._began_s + self._settings.duration_s)
            self._load.stop()
            outcomes = await answering
            polling.cancel()
        self._downtime.end(perf_counter())
        return outcomes

    async def _holdings(self) -> Holdings:
        actors = await self._watch.actors()
        metrics = await self._watch.metrics()
        return Holdings(await asyncio.to_thread(count, self._roots), actors, metrics)

    def _tell(self, strike: Strike) -> None:
        so_far = tally(self._load.outcomes, self._twins, self._striker.strikes)
        victims = ", ".join(str(victim) for victim in strike.victims)
        _say(
            f"{strike.at_s - self._began_s:6.1f} s  {strike.how} {victims}; so far "
            f"{so_far.requests} answers, {so_far.failed} failed, {so_far.changed} changed"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

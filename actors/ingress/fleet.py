"""All pipelines of an application as an ingress sees them: how they are, and changes to them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle

from actors.http.errors import ApiError, BadRequest, Conflict, Unavailable
from actors.http.request_metrics import RequestMetrics
from actors.metrics.metrics_text import metrics_text
from actors.metrics.tally import Tally, added, joined
from actors.patience import start_apart, within
from actors.pipeline.gone_pipelines import folded
from actors.pipeline.pipeline_report import PipelineReport
from actors.pipeline.pipeline_tally import PipelineView, expert_tokens, repeat_rates, shares
from actors.pipeline.recovery import describe
from actors.pipeline.survey import experts_json, total_tokens
from actors.placement.placement_messages import (
    ChangeOutcome,
    ChangeRefused,
    ChangeReport,
    PlacementChange,
)
from actors.ranks.actor_stats import ActorIdentity, ActorStats

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.ingress.ingress import Ingress
    from actors.pipeline.router import Router

Answer = TypeVar("Answer")

_POLL_S = 1.0
_FRESH_EVERY = 60  # looks: the first of them too, which brings the counts of those that are gone
_MENDING_POLL_S = 0.2  # while no pipeline serves: requests wait for what a look tells
_FIRST_POLL_S = 0.1  # until one has been seen: somebody waits for the start
_ANSWER_S = 2.0  # an actor that takes longer to say how it is is left out
_GONE_S = 60.0  # a pipeline that has not answered for so long is gone

logger = logging.getLogger(__name__)

BROKEN = (RayError, RayServeException, RuntimeError, TimeoutError)


class Fleet:
    """Asks the routers, and every actor of theirs by its name in Ray.

    It also keeps what ingresses and routers have counted, those that are gone included: the
    ingresses and routers tell each other, so that it takes the end of all of them to forget.
    """

    def __init__(
        self,
        router: DeploymentHandle[Router],
        ingress: DeploymentHandle[Ingress],
        namespace: str,
        model_name: str,
        own: tuple[str, RequestMetrics],
    ) -> None:
        """`own`: under which name this ingress counts, and its counts."""
        self._router = router
        self._ingress = ingress
        self._namespace = namespace
        self._model_name = model_name
        self._own_name, self._own = own
        self._known: Tally = {}
        # Called with the reports whenever all routers have been asked.
        self.on_look: Callable[[Sequence[PipelineReport]], None] = lambda _reports: None
        self._poll: asyncio.Task[None] | None = None
        self._served_s: dict[str, float] = {}
        self._answered_s: dict[str, float] = {}
        self._ready = False
        self._num_looks = 0

    def ready(self) -> bool:
        """Whether a pipeline serves, as last seen."""
        self.watch()
        return self._ready

    def watch(self) -> None:
        """See once a second which pipelines serve, from now on."""
        if self._poll is None:
            self._poll = start_apart(self._keep_looking())

    async def _keep_looking(self) -> None:
        while True:
            pause_s = _POLL_S
            try:
                pause_s = await self._look_once()
            except Exception:  # whatever it is: without looks no actor hears that we live
                logger.exception("a look at the pipelines failed")
            await asyncio.sleep(pause_s)

    async def _look_once(self) -> float:
        """Returns after how many seconds to look again."""
        fresh = self._num_looks % _FRESH_EVERY == 0
        self._num_looks += 1
        reports = [view.report for view in await self._views(self._own_counts(), fresh=fresh)]
        serving = [one.router.pipeline for one in reports if one.serving]
        self._ready = bool(serving)
        self._served_s |= dict.fromkeys(serving, time.monotonic())
        self.on_look(reports)
        if not self._served_s:
            return _FIRST_POLL_S
        return _MENDING_POLL_S if reports and not serving else _POLL_S

    def heard(self, pipeline: str) -> None:
        """A pipeline has sent tokens: one that drains serves too, though Serve shows it no more."""
        self._served_s[pipeline] = time.monotonic()

    def silent_s(self, pipeline: str) -> float:
        """For how long a pipeline has not been seen to serve; 0 for one that was never seen."""
        now_s = time.monotonic()
        return now_s - self._served_s.get(pipeline, now_s)

    def _living(self) -> set[str]:
        """Pipelines that have answered lately."""
        oldest_s = time.monotonic() - _GONE_S
        return {name for name, at_s in self._answered_s.items() if at_s > oldest_s}

    def _own_counts(self) -> Tally:
        return {self._own_name: self._own.counts()}

    def tally(self, heard: Tally) -> Tally:
        """All counts known here, `heard` included."""
        self._known = joined([self._known, heard, self._own_counts()])
        return self._known

    async def _views(self, tell: Tally, *, fresh: bool = False) -> list[PipelineView]:
        """Tell every router; what it says of its pipeline. Those that are silent are left out."""
        views = await _answers(self._router.broadcast("view", tell, fresh), PipelineView)
        self._known = joined([self._known, *(view.tally for view in views)])
        named = (view.report.router.pipeline for view in views)
        self._answered_s |= dict.fromkeys(named, time.monotonic())
        return sorted(views, key=lambda view: view.report.router.pipeline)

    async def _look(self) -> list[PipelineView]:
        """Ask all ingresses and routers: whatever any of them has told anybody is known then.

        The routers come last, and so hold whatever this ingress is about to show.
        """
        peers = await _answers(self._ingress.broadcast("tally", self.tally({})), dict)
        return await self._views(self.tally(joined(peers)), fresh=True)

    async def survey(self) -> list[ActorStats]:
        """Ask all actors of all pipelines; those that do not answer are left out."""
        named = await asyncio.to_thread(ray.util.list_named_actors, True)
        names = [item["name"] for item in named if item["namespace"] == self._namespace]
        answers = await asyncio.gather(*(self._ask(name) for name in names))
        stats = [answer for answer in answers if answer is not None]
        return sorted(stats, key=lambda one: (one.identity.pipeline, one.identity.rank))

    async def _ask(self, name: str) -> ActorStats | None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
            stats: ActorStats = await within(_ANSWER_S, actor.stats.remote())
        except (*BROKEN, ValueError):
            return None
        return stats

    async def experts(self) -> dict[str, object]:
        """Who serves which expert and how loaded each is."""
        stats, views = await asyncio.gather(self.survey(), self._look())
        counts = added(self._known.values())
        return experts_json(
            stats,
            [view.report for view in views],
            expert_tokens(counts),
            repeat_rates(counts),
            _own_identity(),
        )

    async def metrics(self) -> str:
        """Prometheus text of the whole deployment."""
        views = await self._look()
        gauges = {series: value for view in views for series, value in view.gauges.items()}
        recent = total_tokens([view.recent_tokens for view in views])
        counts = folded(added(self._known.values()), self._living())
        return metrics_text(counts, gauges | shares(recent), self._model_name)

    async def change(self, change: PlacementChange) -> ChangeOutcome:
        """Have every pipeline change its placement; returns when it is in force in all that can.

        Raises:
            ApiError: BadRequest or Conflict where none could, Unavailable where there is none.
        """
        try:
            answers = await self._router.broadcast("change", change).results_async(
                return_exceptions=True
            )
        except BROKEN as error:
            raise Unavailable(f"no pipeline can be reached: {describe(error)}") from error
        made = [answer for answer in answers if isinstance(answer, ChangeReport)]
        others = [_refusal(answer) for answer in answers if not isinstance(answer, ChangeReport)]
        if not made:
            raise others[0]
        made.sort(key=lambda report: report.pipeline)
        return ChangeOutcome(tuple(made), tuple(refusal.message for refusal in others))


async def _answers(response: DeploymentBroadcastResponse, kind: type[Answer]) -> list[Answer]:
    """What was answered in time, of which each replica has its own.

    Serve's is for all together: one that hangs would keep the others' answers from us.
    """
    try:
        replicas = await within(_ANSWER_S, response._fetch_replica_results_async())
    except BROKEN:
        return []
    answers = await asyncio.gather(
        *(within(_ANSWER_S, replica.get_async()) for replica in replicas), return_exceptions=True
    )
    return [answer for answer in answers if isinstance(answer, kind)]


def _refusal(answer: object) -> ApiError:
    if isinstance(answer, ChangeRefused):
        if answer.param is None:
            return Conflict(str(answer))
        return BadRequest(str(answer), param=answer.param)
    assert isinstance(answer, BaseException)
    return Unavailable(f"the router did not answer: {describe(answer)}")


def _own_identity() -> ActorIdentity:
    return ActorIdentity("", -1, "ingress", os.getpid(), ray.util.get_node_ip_address(), "cpu")

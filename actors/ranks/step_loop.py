"""The persistent loop of an attention rank: take requests in, agree on a step, run it, report.

One thread runs it; other threads only call `submit`, `abort`, `wake` and `stop`. The attention
ranks of a pipeline go in lockstep, so that the experts' weights are read once for all their
rows: before each step every one tells all ranks how many rows it brings.
Whatever is to change between two steps (the placement) is handed in as requests are.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from actors.messages import GenerateRequest, StepEvents, TokenEvent
from actors.metrics.recent_ttft import RecentTtft
from actors.ranks.engine import Engine
from actors.ranks.interruptions import Interruptions
from actors.scheduling.scheduler import StepPlan
from model.exchange import Exchange, LoopEnd, PeerLost
from model.step_header import StepHeader, agreed_micro_batches, all_move

_HEARTBEAT_S = 5.0  # idle ranks meet at least this often, so that a dead peer is noticed
_SHARE_OF_PATIENCE = 1 / 3  # and so often that none is taken for lost
_SHORTEST_REST_S = 0.002

logger = logging.getLogger(__name__)

Emit = Callable[[str, StepEvents], None]


class StepLoop:
    """Drives an engine. `exchange` is None where the experts are in this process.

    `emit(ingress_id, events)` is called from the loop's thread, once per step and ingress.
    """

    def __init__(self, engine: Engine, exchange: Exchange | None, emit: Emit) -> None:
        self._engine = engine
        self._pace = engine.scheduler.pace
        self._exchange = exchange
        self._emit = emit
        self._inbox: queue.SimpleQueue[GenerateRequest | str | Callable[[], None]] = (
            queue.SimpleQueue()
        )
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._ingress_of: dict[str, str] = {}
        self._ttft = RecentTtft()
        self._interruptions = Interruptions()
        self._plan: StepPlan | None = None  # chosen, and not yet run to its end
        self._next_epoch = 0
        self.placement_version = 0  # told to the other ranks; for whoever owns the dispatcher

    def attach(self, exchange: Exchange, epoch: int) -> None:
        """Go on over this epoch's exchange, while `run` is not running."""
        self._exchange = exchange
        if self._next_epoch <= epoch:  # the word to go on to a later one may be here already
            self._next_epoch = 0

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        """Hand in requests for the next step; any thread."""
        for request in requests:
            self._inbox.put(request)
        self._wake.set()

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests before the next step; unknown ones are ignored. Any thread."""
        for request_id in request_ids:
            self._inbox.put(request_id)
        self._wake.set()

    def drop_ingress(self, ingress_id: str) -> None:
        """Drop all requests of an ingress before the next step; any thread."""
        self.between_steps(lambda: self._drop_ingress(ingress_id))

    def _drop_ingress(self, ingress_id: str) -> None:
        orphans = [one for one, owner in self._ingress_of.items() if owner == ingress_id]
        for request_id in orphans:
            self._engine.abort(request_id)
            self._forget(request_id)

    def between_steps(self, action: Callable[[], None]) -> None:
        """Have the loop's thread run `action` before the next step; any thread."""
        self._inbox.put(action)
        self._wake.set()

    def move(self, epoch: int) -> None:
        """Leave for `epoch` as soon as all attention ranks are told to; any thread."""
        self._next_epoch = epoch
        self._wake.set()

    def wake(self) -> None:
        """Join the next step even without work of one's own; any thread."""
        self._wake.set()

    def stop(self) -> None:
        """End the loop at the next step boundary, and with it every rank's; any thread."""
        self._stop.set()
        self._wake.set()

    @property
    def num_unfinished(self) -> int:
        """Requests handed in and not ended, as far as the loop has seen them."""
        return len(self._ingress_of) + self._inbox.qsize()

    def recent_ttft_s(self) -> float:
        """See RecentTtft; any thread."""
        return self._ttft.value_s(time.time())

    def run(self) -> LoopEnd:
        """Loop until told to stop or move. After PeerLost or a move it can be run again.

        A step that was interrupted then runs again; writing its keys and values is idempotent.

        Raises:
            PeerLost: a peer is gone.
        """
        try:
            return self._run()
        except PeerLost:
            self._interruptions.lost(time.time())
            raise

    def _run(self) -> LoopEnd:
        engine, exchange = self._engine, self._exchange
        rest_s = _SHORTEST_REST_S
        self._interruptions.over(time.time(), self._ingress_of)
        self._pace.interrupt()
        while True:
            self._take_in()
            stopping = self._stop.is_set()
            plan = self._plan = self._plan or engine.plan_step()
            headers: list[StepHeader] = []
            if exchange is None:
                if stopping:
                    return "stop"
                self._begin(plan)
                if not plan:
                    self._woken(None)
                    continue
            else:
                headers = exchange.open_step(
                    plan.num_rows,
                    self.placement_version,
                    num_decodes=len(plan.decodes),
                    next_epoch=self._next_epoch,
                    micro_batches=engine.micro_batches.propose(plan.num_rows),
                    stop=stopping,
                    asks_busy=engine.micro_batches.asks_busy,
                )
                if any(header.stop for header in headers):
                    return "stop"
                if all_move(headers):
                    return "move"
                self._begin(plan, headers)
                if not any(header.num_rows for header in headers):
                    # News that reaches a rank whose header is out goes into the step after, and
                    # a wake may come before the news: stay near for as long as there was work.
                    woken = self._woken(rest_s)
                    longest_s = min(_HEARTBEAT_S, _SHARE_OF_PATIENCE * exchange.patience_s)
                    rest_s = _SHORTEST_REST_S if woken else min(2 * rest_s, longest_s)
                    continue
                rest_s = _SHORTEST_REST_S
            if plan:
                events = engine.run_step(plan, agreed_micro_batches(headers) if exchange else 1)
                self._plan = None
                self._report(events)
                if exchange is not None:
                    self._learn(exchange, headers)

    def _learn(self, exchange: Exchange, headers: Sequence[StepHeader]) -> None:
        """Have the choice of micro-batches know how the step went."""
        choice = self._engine.micro_batches
        busy_s = exchange.ask_busy() if choice.asks_busy else ()
        choice.observe(self._engine.last_step, sum(h.num_rows for h in headers), busy_s)

    def _begin(self, plan: StepPlan, headers: Sequence[StepHeader] = ()) -> None:
        """Tell the pace of the step that begins, or of the rest: a plan without rows."""
        decodes, prefills = len(plan.decodes), plan.num_rows - len(plan.decodes)
        all_decodes = sum(header.num_decodes for header in headers)
        all_prefills = sum(header.num_rows for header in headers) - all_decodes
        peers = (all_decodes - decodes, all_prefills - prefills) if headers else (0, 0)
        self._pace.begin(time.monotonic(), decodes, prefills, *peers)

    def _woken(self, timeout_s: float | None) -> bool:
        """Rest until woken or for so long; returns whether it was woken."""
        woken = self._wake.wait(timeout_s)
        if woken:
            self._wake.clear()
        return woken

    def _take_in(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, str):
                self._engine.abort(item)
                self._forget(item)
            elif callable(item):
                item()
            else:
                self._ingress_of[item.request_id] = item.ingress_id
                if not item.output_token_ids and item.arrival_s:
                    self._ttft.arrived(item.request_id, item.arrival_s)
                self._report(self._add(item))

    def _add(self, request: GenerateRequest) -> list[TokenEvent]:
        try:
            return self._engine.add(request)
        except ValueError:
            # The ingress checks requests; one that slips through must not end everybody's step.
            logger.exception("request %s cannot run here", request.request_id)
            return [TokenEvent(request.request_id, (), None, "abort")]

    def _forget(self, request_id: str) -> None:
        self._ingress_of.pop(request_id, None)
        self._ttft.left(request_id)
        self._interruptions.forget(request_id)

    def _report(self, events: Sequence[TokenEvent]) -> None:
        by_ingress: dict[str, StepEvents] = {}
        now_s = time.time()
        for event in events:
            ingress_id = self._ingress_of.get(event.request_id)
            if ingress_id is None:
                continue
            by_ingress.setdefault(ingress_id, []).append(self._interruptions.told(event))
            self._ttft.token(event.request_id, now_s)
            if event.finish_reason is not None:
                self._forget(event.request_id)
        for ingress_id, batch in by_ingress.items():
            self._emit(ingress_id, batch)

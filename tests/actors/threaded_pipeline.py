"""A whole pipeline in one process: each rank a thread with process groups of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from actors.messages import GenerateRequest, StepEvents, TokenEvent
from actors.model_plan import ModelPlan
from actors.ranks.engine import Engine
from actors.ranks.engine_build import all_experts, build_engine, exact_dispatcher, expert_server
from actors.ranks.process_group import join
from actors.ranks.rendezvous import Rendezvous, host_store
from actors.ranks.step_loop import StepLoop
from model.checkpoint import Checkpoint
from model.dispatch import Dispatcher, LocalDispatcher
from model.exact_dispatch import ExactDispatcher
from model.exchange import Exchange
from model.expert_load import ExpertLoad
from model.expert_server import ExpertServer
from model.loading import load_decoder, load_experts
from model.placement import ExpertPlacement, split_evenly
from model.role_times import RoleTimes
from model.step_header import StepHeader

HOST = "127.0.0.1"
CPU = torch.device("cpu")
PATIENCE_S = 60.0


class WatchedExchange(Exchange):
    """Tells of every header that goes out, before it waits for those of the others."""

    on_open: Callable[[int], None] = staticmethod(lambda _num_rows: None)

    def open_step(self, num_rows: int, placement_version: int, **rest: Any) -> list[StepHeader]:
        self.on_open(num_rows)
        return super().open_step(num_rows, placement_version, **rest)


class ThreadedPipeline:
    """A and E as in the plan. What the loops emit is in `emitted`: (rank, ingress, events)."""

    def __init__(self, plan: ModelPlan) -> None:
        self.plan = plan
        self.emitted: queue.Queue[tuple[int, str, StepEvents]] = queue.Queue()
        self.engines: list[Engine] = []
        self.loads: list[ExpertLoad] = []
        self.loops: list[StepLoop] = []
        self.dispatchers: list[ExactDispatcher] = []
        self.servers: list[ExpertServer] = []
        self.exchanges = self._meet() if plan.num_expert else []
        self.failures: list[BaseException] = []
        self._attention()
        self._experts()
        self._threads = self._new_threads()

    def _new_threads(self) -> list[threading.Thread]:
        targets = [run.run for run in self.loops] + [run.run for run in self.servers]
        return [
            threading.Thread(target=self._run, args=(target,), daemon=True) for target in targets
        ]

    @property
    def expert_times(self) -> list[RoleTimes]:
        return [server.times for server in self.servers]

    def meet_again(self) -> None:
        """Once every rank has lost its peers: the same ranks in the next epoch, not started."""
        self.join()
        self.failures.clear()
        self.exchanges = self._meet()
        for exchange, dispatcher, loop in zip(self.exchanges, self.dispatchers, self.loops):
            dispatcher.attach(exchange, self._placement)
            loop.attach(exchange, 2)
        for exchange, server in zip(self.exchanges[self.plan.num_attention :], self.servers):
            server.attach(exchange)
        self._threads = self._new_threads()

    def _meet(self) -> list[WatchedExchange]:
        plan = self.plan
        size = plan.num_attention + plan.num_expert
        store = host_store(HOST, PATIENCE_S)
        meeting = Rendezvous(HOST, store.port, 1, PATIENCE_S)
        with ThreadPoolExecutor(size) as threads:
            made = list(
                threads.map(lambda rank: join(meeting, plan.ranks(rank), HOST, CPU), range(size))
            )
        return [
            WatchedExchange(one.ranks, one._control, one._data, one_message=one.one_message)
            for one in made
        ]

    def _attention(self) -> None:
        plan, checkpoint = self.plan, Checkpoint(self.plan.model_dir)
        for rank in range(plan.num_attention):
            dispatcher: Dispatcher
            exchange = self.exchanges[rank] if self.exchanges else None
            if exchange is None:
                shard = load_experts(
                    checkpoint, plan.model, all_experts(plan), plan.torch_dtype, CPU
                )
                dispatcher = LocalDispatcher(shard)
            else:
                dispatcher = exact_dispatcher(plan, CPU)
                dispatcher.attach(exchange, self._placement)
                self.dispatchers.append(dispatcher)
            weights = load_decoder(checkpoint, plan.model, plan.torch_dtype, CPU)
            built = build_engine(plan, weights, dispatcher, CPU)
            assert built.load is not None
            self.engines.append(built.engine)
            self.loads.append(built.load)
            self.loops.append(StepLoop(built.engine, exchange, self._emit_of(rank)))

    def _experts(self) -> None:
        plan, checkpoint = self.plan, Checkpoint(self.plan.model_dir)
        for exchange in self.exchanges[plan.num_attention :]:
            held = self._placement.held_by(exchange.ranks.own)
            shard = load_experts(checkpoint, plan.model, held, plan.torch_dtype, CPU)
            server = expert_server(plan, shard, CPU)
            server.attach(exchange)
            self.servers.append(server)

    @property
    def _placement(self) -> ExpertPlacement:
        plan = self.plan
        ranks = range(plan.num_attention, plan.num_attention + plan.num_expert)
        return split_evenly(plan.model.num_layers, plan.model.num_experts, ranks)

    def _emit_of(self, rank: int) -> Callable[[str, StepEvents], None]:
        return lambda ingress, events: self.emitted.put((rank, ingress, events))

    def _run(self, target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as failure:  # shown by stop()
            self.failures.append(failure)

    def start(self) -> None:
        """Start all ranks."""
        for thread in self._threads:
            thread.start()

    def submit(self, rank: int, requests: Sequence[GenerateRequest]) -> None:
        """As the router does: the requests to one rank, and word of it to all others."""
        for other, loop in enumerate(self.loops):
            loop.submit(requests if other == rank else ())

    def next_events(self, timeout_s: float = PATIENCE_S) -> tuple[int, str, StepEvents]:
        """The next message that a loop emits."""
        return self.emitted.get(timeout=timeout_s)

    def until_ended(self, count: int) -> list[TokenEvent]:
        """All events up to the end of `count` requests."""
        events: list[TokenEvent] = []
        while count:
            _, _, batch = self.next_events()
            events += batch
            count -= sum(event.finish_reason is not None for event in batch)
        return events

    def stop(self, rank: int = 0) -> None:
        """Stop one rank; all that it steps with must end, none by a failure."""
        for other, loop in enumerate(self.loops):
            loop.wake()
            if other == rank or not self.exchanges:
                loop.stop()
        self.join()
        assert not self.failures, self.failures

    def join(self) -> None:
        """Wait for all ranks' ends."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@contextmanager
def running(plan: ModelPlan) -> Iterator[ThreadedPipeline]:
    """A pipeline that serves, and is stopped on the way out if it has not been."""
    pipeline = ThreadedPipeline(plan)
    pipeline.start()
    try:
        yield pipeline
        if any(thread.is_alive() for thread in pipeline._threads):
            pipeline.stop()
    finally:
        for loop in pipeline.loops:
            loop.stop()

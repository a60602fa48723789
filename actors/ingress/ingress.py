"""The ingress: speaks HTTP, tokenizes, streams. Holds no weights. A Serve replica."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from actors.http.api import create_api
from actors.http.doors import Doors, KeyDigests, is_loopback
from actors.http.rate_limits import RateLimits
from actors.http.request_log import request_level, write_line
from actors.http.request_metrics import RequestMetrics
from actors.http.request_record import RequestRecord
from actors.http.serving_state import ServingState
from actors.http.waiting_line import LineLimits, WaitingLine
from actors.hub import HubModel
from actors.ingress.fleet import Fleet
from actors.ingress.pipeline_client import PipelineClient
from actors.log_lines import LogSettings
from actors.metrics.ray_metrics import RayExport, keep_exporting
from actors.metrics.tally import Tally
from actors.model_plan import generation_defaults, model_directory
from actors.naming import namespace_of
from actors.patience import in_daemon_thread, within
from actors.pipeline.assignment import MAX_KEYS, Assigner
from actors.pipeline.pipeline_choice import PipelineChoice
from configs.schema import WindroseConfig
from model.chat_template import chat_format
from model.head import ModelHead
from model.tokenizer import Tokenizer

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.http.tracing import RequestTracer
    from actors.pipeline.router import Router

_DRAIN_POLL_S = 0.05
_LAST_BYTES_S = 0.25
_FLUSH_S = 2.0


def _share(per_minute: int | None, replicas: int) -> float | None:
    """What one of so many may let through, so that all together keep the limit."""
    return None if per_minute is None else per_minute / replicas


def _bound_host() -> str | None:
    """What Serve's proxy binds: of a Serve file the config knows only the `args`, not the host."""
    client = _get_global_client()
    assert client is not None, "a replica has a controller"
    host: str | None = client.http_config.host
    return host


@serve.ingress()
class Ingress:
    """What one HTTP replica holds; Serve asks it for the app once it is constructed."""

    def __init__(
        self,
        config: WindroseConfig,
        router: DeploymentHandle[Router],
        max_model_len: int,
        vocab_size: int,
        head: ModelHead,
        keys: KeyDigests,
        hub: HubModel | None,
    ) -> None:
        context = serve.get_replica_context()
        ingress_id = uuid.uuid4().hex
        self._line_level = request_level(config.log_format)
        self._tracer = _tracer(config, ingress_id)
        LogSettings.of(config).configure("ingress", ingress=ingress_id)
        metrics = RequestMetrics()
        self._fleet = Fleet(
            router,
            serve.get_deployment_handle(context.deployment, context.app_name),
            namespace_of(context.app_name),
            config.model_name,
            (f"ingress/{ingress_id}", metrics),
        )
        source = PipelineClient(
            router,
            namespace_of(context.app_name),
            ingress_id,
            self._fleet,
            config.pipeline_wait_s,
            PipelineChoice(_assigner(config)),
            asleep_is_ready=config.max_replicas is not None and config.min_replicas == 0,
        )
        self._source = source
        self._exporting = keep_exporting(
            RayExport(config.model_name), lambda: (metrics.counts(), {})
        )
        directory = model_directory(config, hub)
        tokenizer = Tokenizer.from_dir(directory)
        self._state = ServingState(
            model_name=config.model_name,
            tokenizer=tokenizer,
            chat_format=chat_format(tokenizer, directory, config.chat_template),
            defaults=generation_defaults(config, directory),
            log_prompts=config.log_prompts,
            on_end=self._ended,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            head=head,
            pooling=config.pooling or "last",
            add_eos=Tokenizer.adds_eos(directory),
            source=source,
            metrics=metrics,
            started_s=int(time.time()),
            version=version("windrose"),
            ingress_id=ingress_id,
            doors=Doors(keys, beyond_loopback=not is_loopback(_bound_host())),
            allowed_origins=config.allowed_origins,
            max_request_bytes=config.max_request_bytes,
            body_timeout_s=config.body_timeout_s,
            request_timeout_s=config.request_timeout_s,
            line=WaitingLine(
                LineLimits(
                    config.max_num_queued_reqs, config.max_queued_tokens, config.max_queue_time_s
                )
            ),
            rates=RateLimits(
                _share(config.max_requests_per_minute, config.ingress_replicas),
                _share(config.max_tokens_per_minute, config.ingress_replicas),
            ),
        )

    def _ended(self, record: RequestRecord) -> None:
        write_line(record, self._line_level)
        if self._tracer is not None:
            self._tracer(record)

    async def tally(self, heard: Tally) -> Tally:
        """All counts that this ingress knows, for one that has `heard` so much."""
        return self._fleet.tally(heard)

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the accepted ones; returns how many did not finish.

        Those end with an error.
        """
        self._state.draining = True
        deadline_s = time.monotonic() + timeout_s
        while self._state.num_in_flight and time.monotonic() < deadline_s:
            await asyncio.sleep(_DRAIN_POLL_S)
        unfinished = self._state.num_in_flight
        self._source.give_up()
        # The last bytes of the last answer are still on their way through the proxy.
        await asyncio.sleep(_LAST_BYTES_S)
        await self._flush_traces()
        return unfinished

    async def __del__(self) -> None:
        """Serve calls this when the replica goes; what it has to tell goes out first."""
        if hasattr(self, "_exporting"):
            self._exporting.set()
        if hasattr(self, "_tracer"):
            await self._flush_traces()

    async def _flush_traces(self) -> None:
        """The end does not wait for long for a collector that is gone."""
        if self._tracer is not None:
            with suppress(TimeoutError):
                await within(_FLUSH_S, in_daemon_thread(self._tracer.flush))

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's own middleware answers with X-Request-Id, and `serve_middlewares` around it.
        return create_api(self._state, request_id_header=False)


def _tracer(config: WindroseConfig, ingress_id: str) -> RequestTracer | None:
    if config.otlp_endpoint is None:
        return None
    from actors.http.tracing import otlp_tracer

    return otlp_tracer(config.otlp_endpoint, config.model_name, ingress_id)


def _assigner(config: WindroseConfig) -> Assigner:
    """For the pipelines; with one, upgrades aside, there is nothing to know them by."""
    worth = config.enable_prefix_caching and config.most_replicas > 1
    return Assigner(config.block_size, MAX_KEYS * config.attention_actors if worth else 0)

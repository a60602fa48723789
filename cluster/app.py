"""The Serve application: one ingress deployment in front of one router deployment.

`windrose serve`, `serve run` and `serve deploy` all come here.
"""

# No `from __future__ import annotations` here: Serve looks at build_app's annotation to turn the
# `args` of a Serve file into a WindroseConfig, and must find the class, not its name.

import logging
import os
import warnings
from typing import Any, cast

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.deployment import Application

from actors.http.api_keys import read_keys, without_keys
from actors.http.trace_endpoint import trace_endpoint
from actors.hub import find_model
from actors.ingress.ingress import Ingress
from actors.ingress.request_router import ByPipeline
from actors.model_plan import plan_model
from actors.pipeline.router import Router
from cluster.autoscaling import ScalingPolicy
from cluster.head import on_head
from cluster.placement import (
    INGRESS_CPUS,
    ROUTER_CPUS,
    deployment_bundles,
    pipeline_bundles,
    resolve_device,
    strategy,
)
from cluster.room import machines
from cluster.shortage import shortage
from configs.schema import WindroseConfig

_HEALTH_CHECK_PERIOD_S = 1.0
_MAX_STREAMS = 100_000  # Serve must not limit what the ingress admits by itself
_LOAD_PERIOD_S = 1.0  # how often routers report it; Serve's default of 10 s is a burst too late
_LOOK_BACK_S = 2.0  # calls that waited longer ago must not wake a pipeline that has just gone
_END_S = 20.0  # of a pipeline's processes, once it is idle

logger = logging.getLogger(__name__)


def build_app(args: WindroseConfig) -> Application:
    """Assemble the application; refuses what cannot be served before anything starts.

    A cluster that lacks room gets a warning only: machines may still come.

    Raises:
        ValueError: the checkpoint or the settings are at fault.
    """
    device = device_here(args)
    application = assemble(args, device)
    if ray.is_initialized():
        short = shortage(deployment_bundles(args, device, args.first_replicas), machines())
        if short is not None:
            logger.warning("%s does not start before there is room: %s", args.model_name, short)
    return application


def device_here(args: WindroseConfig) -> str:
    """Where the actors compute, on the connected cluster."""
    return resolve_device(args, ray.cluster_resources() if ray.is_initialized() else {})


def assemble(args: WindroseConfig, device: str) -> Application:
    """The application, on a device of which there may or may not be enough.

    Raises:
        ValueError: the checkpoint or the settings are at fault.
    """
    # Ray keeps what deployments are made of: it gets the digests of keys and not the keys.
    keys = read_keys(args, os.environ)
    args = without_keys(args)
    # Actors may have another environment than who deploys them.
    args = args.model_copy(update={"otlp_endpoint": trace_endpoint(args, os.environ)})
    hub = find_model(args, os.environ)
    plan = plan_model(args, device, hub)
    bundles = [dict(bundle) for bundle in pipeline_bundles(args, device)]
    # Of several pipelines the first one's actors may fill the head, and a router that asks for it
    # would wait for ever.
    cpus = ROUTER_CPUS + args.ingress_replicas * INGRESS_CPUS
    nodes = ray.nodes() if ray.is_initialized() and args.most_replicas == 1 else []
    head = on_head(nodes, cpus)
    bundles[0].update(head)
    router = serve.deployment(
        **_number_of_pipelines(args),
        ray_actor_options={"num_cpus": ROUTER_CPUS},
        placement_group_bundles=bundles,
        placement_group_strategy=strategy(args),
        max_ongoing_requests=_MAX_STREAMS,
        max_constructor_retry_count=3,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=args.drain_timeout_s + _END_S,
        max_surge_percent=args.max_surge_percent,
        request_router_config=RequestRouterConfig(request_router_class=cast(Any, ByPipeline)),
    )(Router)
    ingress = serve.deployment(
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": INGRESS_CPUS, "resources": head},
        max_ongoing_requests=_MAX_STREAMS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=max(args.shutdown_timeout_s, args.drain_timeout_s),
        max_surge_percent=100,
    )(Ingress)
    return ingress.bind(
        args,
        router.bind(args, device, hub),
        plan.limits.max_model_len,
        plan.model.vocab_size,
        plan.model.head,
        keys,
        hub,
    )


def _number_of_pipelines(config: WindroseConfig) -> dict[str, Any]:
    """Serve's options for it: fixed, or following the load."""
    if config.max_replicas is None:
        return {"num_replicas": config.replicas}
    target = config.target_ongoing_requests or config.attention_actors * config.max_num_seqs
    policy = AutoscalingPolicy(
        policy_function=ScalingPolicy,
        policy_kwargs={
            "target_ongoing_requests": target,
            "target_ttft_s": config.target_ttft_s,
        },
    )
    with warnings.catch_warnings():
        # The period's successors, two environment variables, do nothing in Ray 2.60 yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            initial_replicas=config.initial_replicas,
            target_ongoing_requests=target,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            metrics_interval_s=_LOAD_PERIOD_S,
            look_back_period_s=_LOOK_BACK_S,
            policy=policy,
        )
    return {"autoscaling_config": scaling}

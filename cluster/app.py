"""The Serve application: one ingress deployment in front of one router deployment.

`windrose serve`, `serve run` and `serve deploy` all come here.
"""

# No `from __future__ import annotations` here: Serve looks at build_app's annotation to turn the
# `args` of a Serve file into a WindroseConfig, and must find the class, not its name.

import ray
from ray import serve
from ray.serve.deployment import Application

from actors.ingress import Ingress
from actors.model_plan import plan_model
from actors.router import Router
from cluster.head import on_head
from cluster.placement import INGRESS_CPUS, ROUTER_CPUS, pipeline_bundles, resolve_device
from configs.schema import WindroseConfig

_HEALTH_CHECK_PERIOD_S = 1.0
_MAX_STREAMS = 100_000  # Serve must not limit what the ingress admits by itself


def build_app(args: WindroseConfig) -> Application:
    """Assemble the application; refuses what cannot be served before anything starts.

    Raises:
        ValueError: the checkpoint or the settings are at fault.
    """
    device = resolve_device(args, ray.cluster_resources() if ray.is_initialized() else {})
    plan = plan_model(args, device)
    bundles = pipeline_bundles(args, device)
    cpus = args.replicas * ROUTER_CPUS + args.ingress_replicas * INGRESS_CPUS
    head = on_head(ray.nodes() if ray.is_initialized() else [], cpus)
    bundles[0].update(head)
    router = serve.deployment(
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": ROUTER_CPUS},
        placement_group_bundles=bundles,
        placement_group_strategy="PACK",
        max_ongoing_requests=_MAX_STREAMS,
        max_constructor_retry_count=3,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=30.0,
    )(Router)
    ingress = serve.deployment(
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": INGRESS_CPUS, "resources": head},
        max_ongoing_requests=_MAX_STREAMS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=args.shutdown_timeout_s,
    )(Ingress)
    return ingress.bind(
        args, router.bind(args, device), plan.limits.max_model_len, plan.model.vocab_size
    )

"""How Serve hands a call to the router that it is meant for.

Serve carries the class to whoever sends, by value: so it stands alone here.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

_PIPELINE = 1  # the place of the pipeline's name among the arguments of Router.submit


class ByPipeline(RequestRouter):
    """The router of the pipeline named in the call, if it is there; else the one with fewer calls.

    Which pipeline is meant the ingress decides (`pipeline_choice.py`): it sees more of them than
    Serve does.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One group of replicas: any of them may be given the call."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where none takes it
        args = pending_request.args
        named = args[_PIPELINE] if len(args) > _PIPELINE else None
        meant = [
            one
            for one in candidate_replicas
            if isinstance(named, str) and named.endswith(f"-{one.replica_id.unique_id}")
        ]
        return [meant or candidate_replicas]

"""Whether a cluster has an autoscaler that adds machines, and what that is doing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get

# Where nobody adds machines Ray's monitor runs all the same, and takes each for a type of its own.
_ONE_OF_ITS_KIND = re.compile(r"node_[0-9a-f]{56}")
_GROUP_LABEL = "ray.io/node-group"
_ANSWER_S = 5


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """What it is bringing up now, as `2 gpu_worker`, and what it could not."""

    starting: tuple[str, ...]
    failed: tuple[str, ...] = ()


def find_autoscaler() -> Autoscaler | None:
    """The connected cluster's; None where no one adds machines."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        return _second()
    return first_of_status(_internal_kv_get(DEBUG_AUTOSCALING_STATUS))


def first_of_status(status: bytes | None) -> Autoscaler | None:
    """The autoscaler (its first version) whose monitor has written this; pure."""
    report = json.loads(status).get("autoscaler_report") if status else None
    if report is None:
        return None
    pending = Counter({kind: int(count) for kind, count in report["pending_launches"].items()})
    pending.update(kind for _node, _ip, kind, _state in report["pending_nodes"])
    kinds = {*report["active_nodes"], *(report.get("idle_nodes") or {}), *pending}
    if all(_ONE_OF_ITS_KIND.fullmatch(kind) for kind in kinds):
        return None
    availability = (report.get("node_availability_summary") or {}).get("node_availabilities") or {}
    failed = sorted(
        f"{kind}: {event['unavailable_node_information']['description']}"
        for kind, event in availability.items()
        if (event.get("unavailable_node_information") or {}).get("description")
    )
    return Autoscaler(counted(pending), tuple(failed))


def _second() -> Autoscaler | None:
    from ray.autoscaler.v2.sdk import get_cluster_status

    if not any(node["Labels"].get(_GROUP_LABEL) for node in ray.nodes() if node["Alive"]):
        return None
    status = get_cluster_status(ray.get_runtime_context().gcs_address, _ANSWER_S)
    pending = Counter(one.ray_node_type_name for one in status.pending_nodes)
    for launch in status.pending_launches:
        pending[launch.ray_node_type_name] += launch.count
    failed = {f"{one.ray_node_type_name}: {one.details}" for one in status.failed_launches}
    return Autoscaler(counted(pending), tuple(sorted(failed)))


def counted(kinds: Counter[str] | Iterable[str]) -> tuple[str, ...]:
    """`2 gpu_worker` of each."""
    return tuple(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()) if count)

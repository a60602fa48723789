"""A start that waits for machines: when that is told, and when it is given up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node
from ray.util import placement_group_table

from actors.pipeline.bundles import Resources
from cluster.autoscaler import Autoscaler, find_autoscaler
from cluster.shortage import Node, Shortage, shortage

_PATIENCE_S = 15.0  # machines that have just been started need a moment to join
_IDLE_AUTOSCALER_S = 120.0  # many of its rounds (5 s), and more than it takes to ask for a machine
_TELL_AGAIN_S = 60.0
_WAITING = ("PENDING", "RESCHEDULING")


class NoRoom(RuntimeError):
    """The cluster cannot hold the deployment, and nobody adds machines to it."""


@dataclass(frozen=True, slots=True)
class View:
    """A cluster at one moment, as far as the start of one deployment is concerned."""

    lacking: Shortage | None  # if nobody else used the cluster
    held: Shortage | None  # of what waits now, while others hold what they hold
    autoscaler: Autoscaler | None = None


class RoomWatch:
    """Decides from one view after another; pure."""

    def __init__(self) -> None:
        self._short_since_s: float | None = None
        self._idle_since_s: float | None = None
        self._told: tuple[str, float] | None = None

    def look(self, view: View, now_s: float) -> str | None:
        """What there is to tell, once and then every minute; None: nothing, or nothing new.

        Raises:
            NoRoom: it is of no use to wait.
        """
        short = view.lacking or view.held
        if short is None:
            self._short_since_s = self._idle_since_s = self._told = None
            return None
        if self._short_since_s is None:
            self._short_since_s = now_s
        if now_s - self._short_since_s < _PATIENCE_S:
            return None
        if view.lacking is None:
            return self._tell(f"waiting for what others use; {short}", now_s)
        autoscaler = view.autoscaler
        if autoscaler is None:
            raise NoRoom(f"the cluster has no room, and no autoscaler adds machines; {short}")
        if autoscaler.starting:
            self._idle_since_s = None
            doing = f"starts {', '.join(autoscaler.starting)}"
            return self._tell(f"waiting for machines: the autoscaler {doing}; {short}", now_s)
        if self._idle_since_s is None:
            self._idle_since_s = now_s
        failed = f" ({'; '.join(autoscaler.failed)})" if autoscaler.failed else ""
        if now_s - self._idle_since_s >= _IDLE_AUTOSCALER_S:
            raise NoRoom(
                f"the cluster has no room, and its autoscaler has started nothing for "
                f"{_IDLE_AUTOSCALER_S:.0f} s{failed}; {short}"
            )
        return self._tell(
            f"waiting for machines that the autoscaler may add{failed}; {short}", now_s
        )

    def _tell(self, text: str, now_s: float) -> str | None:
        if self._told is not None:
            told, at_s = self._told
            if told == text and now_s - at_s < _TELL_AGAIN_S:
                return None
        self._told = (text, now_s)
        return text


class Start:
    """The placing of one deployment's pipelines on the connected cluster."""

    def __init__(self, prefix: str, bundles: Sequence[Resources]) -> None:
        """`prefix`: what the names of its placement groups begin with; `bundles`: all it asks."""
        self._prefix = prefix
        self._bundles = bundles
        self._watch = RoomWatch()
        self.placed_s = 0.0  # time.time() when every group had a place

    def look(self) -> str | None:
        """What there is to tell of its placing; see RoomWatch.look.

        Raises:
            NoRoom: it is of no use to wait.
        """
        groups = [g for g in placement_group_table().values() if g["name"].startswith(self._prefix)]
        waiting = [group for group in groups if group["state"] in _WAITING]
        if groups and not waiting:
            self.placed_s = self.placed_s or time.time()
        lacking = shortage(self._bundles, machines())
        held = None
        if lacking is None and waiting:
            asked = [bundle for group in waiting for bundle in group["bundles"].values()]
            held = shortage(asked, machines(free=True))
        autoscaler = find_autoscaler() if lacking is not None else None
        return self._watch.look(View(lacking, held, autoscaler), time.monotonic())


def require_room(bundles: Sequence[Resources]) -> None:
    """For a cluster to which nobody else adds machines.

    Raises:
        NoRoom: says what is missing.
    """
    short = shortage(bundles, machines())
    if short is not None:
        raise NoRoom(f"this machine has no room; {short}")


def machines(*, free: bool = False) -> list[Node]:
    """The connected cluster's machines and what they have in all, or have left."""
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    left = available_resources_per_node() if free else {}
    return [
        Node(node["NodeManagerAddress"], left.get(key, {}) if free else node["Resources"])
        for key, node in alive.items()
    ]

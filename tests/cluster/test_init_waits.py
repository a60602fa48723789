"""What `ray.init` waits for: shortened, and nothing of it lost."""

from __future__ import annotations

from typing import Any

import pytest
import ray._raylet
from ray import NodeID
from ray._private import services, utils
from ray.exceptions import RpcError

from cluster.init_waits import frequent_looks, no_api_server, small_agent

NODE, OTHER = NodeID.from_random(), NodeID.from_random()


class Looks:
    """A GCS in which the node appears at the third look, and what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.events: list[str] = []
        self._fails = fails
        monkeypatch.setattr(ray._raylet, "GcsClient", self._client)
        monkeypatch.setattr(services, "get_node", self._get_node)

    def _client(self, address: str) -> Looks:
        assert address == "10.0.0.1:6379"
        return self

    def get_all_node_info(self, timeout: float) -> dict[NodeID, object]:
        assert timeout > 0
        self.events.append("look")
        if self._fails:
            raise RpcError("no GCS there")
        there = {OTHER: object()}
        return there | ({NODE: object()} if len(self.events) == 3 else {})

    def _get_node(self, gcs_address: str, node_id: str) -> Any:
        assert (gcs_address, node_id) == ("10.0.0.1:6379", NODE.hex())
        self.events.append("Ray's own look")
        return {"node_manager_port": 1}


def test_ray_is_let_on_once_the_node_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    before = services.get_node
    with frequent_looks():
        answer = services.get_node("10.0.0.1:6379", NODE.hex())
    assert answer == {"node_manager_port": 1}
    assert looks.events == ["look", "look", "look", "Ray's own look"]
    assert services.get_node == before


def test_a_gcs_that_cannot_be_asked_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, fails=True)
    with pytest.raises(ZeroDivisionError), frequent_looks():
        services.get_node("10.0.0.1:6379", NODE.hex())
        raise ZeroDivisionError
    assert looks.events == ["look", "Ray's own look"]
    assert services.get_node("10.0.0.1:6379", NODE.hex()) == {"node_manager_port": 1}


def test_no_api_server_is_started_but_by_who_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []

    def start(*args: object, **_options: object) -> tuple[str, object]:
        started.append(args)
        return "127.0.0.1:8265", object()

    monkeypatch.setattr(services, "start_api_server", start)
    with pytest.raises(ZeroDivisionError), no_api_server():
        there = ("127.0.0.1", "127.0.0.1:6379", "ab", "127.0.0.1", "/t", "/t/logs", "/t/session")
        assert services.start_api_server(False, False, *there) == (None, None)
        raise ZeroDivisionError
    assert not started
    assert services.start_api_server is start


def test_the_small_agent_is_only_for_the_node_that_is_started_meanwhile() -> None:
    before = utils.get_dashboard_dependency_error
    assert before() is None  # else nothing here shows a difference
    with pytest.raises(ZeroDivisionError), small_agent():
        assert isinstance(utils.get_dashboard_dependency_error(), ImportError)
        raise ZeroDivisionError
    assert utils.get_dashboard_dependency_error is before

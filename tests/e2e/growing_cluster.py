"""A cluster of its own whose nodes Ray's autoscaler starts and ends: run by test_nodes.py.

Ray's fake node provider makes nodes of processes on this machine; all else is real. It is a
process of its own because one process is in one Ray at a time, and so that all it started ends
with it. Says what it saw in one line of JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.local_ray import LocalRay
from configs.schema import WindroseConfig
from tests.one_tls_context import share_tls_context
from tests.ports import free_port

CLIENTS = 12
MAX_TOKENS = 60
CPUS = 2  # of a node: Serve and one pipeline fit on the head, the second one does not
TYPES = {
    "ray.head.default": {"resources": {"CPU": CPUS}, "node_config": {}, "max_workers": 0},
    "worker": {
        "resources": {"CPU": CPUS, "object_store_memory": 100 << 20},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 1,
    },
}
LISTS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


class GrowingRay(LocalRay):
    """Its head is here, and so are the nodes that Ray adds."""

    def start(self, *, show_logs: bool = False, exports: bool = False) -> None:
        """Start the head and its autoscaler, and connect."""
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        import ray

        port = free_port()
        address = f"{ray.util.get_node_ip_address()}:{port}"
        config = {
            "cluster_name": "growing",
            "max_workers": 1,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": address,
                "use_node_id_as_ip": True,  # they share one
                "disable_node_updaters": True,  # nothing is installed over SSH
                "disable_launch_config_check": True,
            },
            "available_node_types": TYPES,
            "head_node_type": "ray.head.default",
            "auth": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{key: [] for key in LISTS},
        }
        file = self._runtime_dir / "autoscaling.json"
        file.write_text(json.dumps(config))
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
                *(f"--port={port}", f"--autoscaling-config={file}", f"--num-cpus={CPUS}"),
                *("--include-dashboard=false", f"--object-store-memory={100 << 20}"),
                *("--disable-usage-stats", f"--temp-dir={self._runtime_dir / 'ray'}"),
            ],
            env=os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"},
            check=True,
            stdout=sys.stderr,
        )
        ray.init(address=address, log_to_driver=False)


def main(model: str) -> dict[str, Any]:
    """Raise the load until there is a second node, lower it until that is gone."""
    share_tls_context()
    port = free_port()
    local_ray = GrowingRay(CPUS, shutdown_timeout_s=2.0, http_port=port)
    try:
        local_ray.start()
        return _scenario(model, port)
    finally:
        from ray import serve

        serve.shutdown()
        local_ray.stop()


def _scenario(model: str, port: int) -> dict[str, Any]:
    import ray
    from ray import serve

    from cluster.app import build_app
    from tests.e2e.deployments import wait_healthy
    from tests.e2e.load import Load, calm_answers
    from tests.e2e.streams import LONGEST, Stream, assert_go_on, experts_of, prompt_of

    def num_nodes() -> int:
        return sum(one["Alive"] for one in ray.nodes())

    def num_pipelines() -> int:
        return len(experts_of(url)["pipelines"])

    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    config = WindroseConfig(
        model=model,
        threads_per_actor=1,
        max_model_len=LONGEST,
        max_replicas=2,
        target_ongoing_requests=4,
        upscale_delay_s=0.5,
        downscale_delay_s=1.5,
    )
    serve.run(build_app(config), name="growing", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    wait_healthy(url)
    known = calm_answers(url, CLIENTS, MAX_TOKENS)
    seen: dict[str, Any] = {"before": [num_pipelines(), num_nodes()]}
    with Load(url, CLIENTS, MAX_TOKENS) as load:
        _until(lambda: num_pipelines() == 2)
        seen["under load"] = [num_pipelines(), num_nodes()]
        load.more(2 * CLIENTS)
        long = [Stream(url, prompt_of(i), LONGEST - 100) for i in range(4)]
        for stream in long:
            stream.start()
            assert stream.started.wait(30.0)
    answers = load.take()
    seen["answers"] = sum(answers.values())
    assert set(answers) == set(enumerate(known))
    _until(lambda: num_pipelines() == 1)
    seen["streams at the end of the load"] = sum(not stream.done for stream in long)
    assert_go_on(long)
    for i, stream in enumerate(long):
        stream.leave()
        stream.join(60.0)
        assert not stream.is_alive() and stream.error is None, stream.error
        assert tuple(stream.token_ids[:MAX_TOKENS]) == known[i]
    _until(lambda: num_nodes() == 1)
    assert calm_answers(url, CLIENTS, MAX_TOKENS) == known
    seen["after"] = [num_pipelines(), num_nodes()]
    return seen


def _until(condition: Callable[[], bool], within_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)  # nothing to wait on from outside


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(str(Path(sys.argv[1]).resolve()))) + "\n")

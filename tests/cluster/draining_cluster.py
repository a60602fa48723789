"""A Ray of three nodes on this machine: one is drained under load and taken away. A program.

`python -m tests.cluster.draining_cluster LOAD_S` prints one JSON line. The head has no CPUs, as in
a Kubernetes cluster of ours, so that router and ingress are on the first worker, and can move to
the second only.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from cluster.local_ray import end_descendants, serve_environment
from configs.schema import WindroseConfig
from tests.one_tls_context import share_tls_context
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
STREAMS = 3
DRAIN_S = 60.0
_STORE_BYTES = 100 << 20


def main(calm_load_s: float) -> None:
    """Bring it up, drain, take away, bring it down."""
    share_tls_context()
    runtime_dir = Path(tempfile.mkdtemp(prefix="windrose-", dir="/tmp"))
    port = free_port()
    os.environ.update(serve_environment(runtime_dir, 20.0, http_port=port))
    os.environ["RAY_AUTH_MODE"] = "disabled"  # it listens to this machine only
    # Ray's Cluster writes its address there for `ray.init(address="auto")`; it takes the folder
    # for granted, and the usual one, /tmp/ray, is everybody's.
    os.environ["RAY_TMPDIR"] = str(runtime_dir)
    (runtime_dir / "ray").mkdir()
    try:
        sys.stdout.write(json.dumps(_drained(runtime_dir, port, calm_load_s)) + "\n")
    finally:
        end_descendants()
        shutil.rmtree(runtime_dir, ignore_errors=True)


def _drained(runtime_dir: Path, port: int, calm_load_s: float) -> dict[str, object]:
    # Imported only now: Ray and Serve read the environment at import.
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from cluster.app import build_app
    from ops.drain_node import _drain, _replicas_on, drain_node

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "temp_dir": str(runtime_dir / "ray"),
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": True,  # it answers who lives where
            "dashboard_port": free_port(),
        },
    )
    first = cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    config = WindroseConfig(
        model=str(ROOT / "configs/demo"),
        dtype="float32",
        expert_actors=1,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        kv_cache_memory_bytes=64 << 20,
        shutdown_timeout_s=20.0,
    )
    serve.run(build_app(config), name="windrose", route_prefix="/")
    second = cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
    load = _Load(f"http://127.0.0.1:{port}")
    calm = load.answer()
    load.begin()
    time.sleep(calm_load_s)
    before = _replicas_on(first.node_id)
    begun_s = time.monotonic()
    left = drain_node(
        DRAIN_S,
        lambda seconds: _drain(first.node_id, seconds),
        lambda: _replicas_on(first.node_id),
    )
    took_s = time.monotonic() - begun_s
    cluster.remove_node(first)
    served = len(load.answers)
    load.wait_for(served + 2 * STREAMS)
    answers = load.end()
    result: dict[str, object] = {
        "before": before,
        "left": left,
        "after": _replicas_on(second.node_id),
        "drain_s": round(took_s, 1),
        "served_before_it_went": served,
        "requests": len(answers),
        "calm": calm,
        "different": [one for one in answers if one != calm],
    }
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
    return result


class _Load:
    """Streams of one greedy request, one after another in each of STREAMS threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(STREAMS)]
        self.answers: list[str] = []

    def answer(self) -> str:
        body = {
            "model": "demo",
            "prompt": "What is Windrose?",
            "max_tokens": 150,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=120) as answer:
            answer.raise_for_status()
            chunks = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
        return "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)

    def _go_on(self) -> None:
        while not self._over.is_set():
            try:
                self.answers.append(self.answer())
            except (httpx.HTTPError, KeyError) as error:
                self.answers.append(f"failed: {error!r}")

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_for(self, answers: int) -> None:
        deadline_s = time.monotonic() + 90.0
        while len(self.answers) < answers and time.monotonic() < deadline_s:
            time.sleep(0.1)

    def end(self) -> list[str]:
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.answers


if __name__ == "__main__":
    main(float(sys.argv[1]))

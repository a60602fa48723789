"""An HTTP ingress dies: only its own connections break, and its requests hold nothing for long."""

from __future__ import annotations

import os
import signal
import time

import httpx
import pytest

from actors.ranks.ingress_links import LEASE_S
from tests.e2e.streams import LONGEST, Calm, Known, assert_under_way, experts_of, finished, start

NUM_STREAMS = 16
MAX_TOKENS = 200
FAR = LONGEST - 100  # tokens: longer than the lease of an ingress


@pytest.fixture(scope="module")
def known(url: str, calm: Calm) -> Known:
    return calm.known(url, NUM_STREAMS, MAX_TOKENS)


def ingress_pids(url: str) -> set[int]:
    """Of all ingresses: each answers with its own."""
    pids: set[int] = set()
    deadline_s = time.monotonic() + 60.0
    while len(pids) < 2 and time.monotonic() < deadline_s:
        pids |= {one["pid"] for one in experts_of(url)["actors"] if one["role"] == "ingress"}
    assert len(pids) == 2
    return pids


def running(url: str) -> float:
    """Sequences that hold KV blocks, as the metrics say."""
    lines = httpx.get(f"{url}/metrics", timeout=30.0).raise_for_status().text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("windrose_num_requests_run")
    )


def kill_all_ingresses(url: str) -> None:
    for pid in ingress_pids(url):
        os.kill(pid, signal.SIGKILL)


def test_only_the_dead_ones_connections_break(url: str, known: Known) -> None:
    victim, _other = sorted(ingress_pids(url))
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    assert_under_way(streams)
    os.kill(victim, signal.SIGKILL)
    for stream in streams:
        stream.join(120.0)
        assert stream.done or stream.cut
        if stream.done:
            assert tuple(stream.token_ids) == known[stream.number]
    assert any(stream.cut for stream in streams) and any(stream.done for stream in streams)
    again = finished(start(url, NUM_STREAMS, MAX_TOKENS))
    assert all(tuple(stream.token_ids) == known[stream.number] for stream in again)


def test_what_a_dead_ingress_had_under_way_is_dropped(url: str) -> None:
    pids = ingress_pids(url)
    streams = start(url, NUM_STREAMS, FAR)
    assert running(url) == NUM_STREAMS
    os.kill(min(pids), signal.SIGKILL)
    cut_s = time.monotonic()
    while sum(stream.cut for stream in streams) == 0:
        assert time.monotonic() - cut_s < 30.0
        time.sleep(0.05)  # nothing to wait on from outside
    alive = NUM_STREAMS - sum(stream.cut for stream in streams)
    while running(url) > alive:
        assert time.monotonic() - cut_s < LEASE_S + 30.0
        time.sleep(0.2)
    assert alive > 0 and not any(stream.done for stream in streams), "nothing was cut short"
    for stream in streams:
        stream.leave()  # else the deployment's end waits for them


def test_what_all_ingresses_had_under_way_is_dropped_though_none_is_left_to_say_so(
    url: str,
) -> None:
    streams = start(url, NUM_STREAMS, FAR)
    assert running(url) == NUM_STREAMS
    kill_all_ingresses(url)
    killed_s = time.monotonic()
    for stream in streams:
        stream.join(30.0)
        assert stream.cut
    left = NUM_STREAMS
    while left:  # those that come in their place were never sent to any attention actor
        assert time.monotonic() - killed_s < LEASE_S + 30.0
        time.sleep(0.2)
        try:
            left = int(running(url))
        except httpx.HTTPStatusError:
            continue  # no ingress yet

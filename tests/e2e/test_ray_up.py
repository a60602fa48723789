"""cluster/local.yaml by the real `ray up`: a head and two workers, each a machine of its own.

One cluster for all tests of this file, which run in their order, and for test_workers_follow.py.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.launched import Launched, timed
from tests.e2e.reference import Reference
from tests.e2e.streams import (
    Calm,
    Known,
    NumberedStream,
    assert_under_way,
    assert_undisturbed,
    experts_of,
    ranks_of,
    start,
)

RANKS = [0, 1, 2]
NUM_STREAMS = 12
NUM_LATE = 4
MAX_TOKENS = 400

logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def site(launched_site: Launched) -> Iterator[Launched]:
    """Taken down behind these tests; test_workers_follow.py sees to what that leaves."""
    yield launched_site
    launched_site.take_down()


@pytest.fixture(scope="module")
def known(site: Launched, calm: Calm) -> Known:
    return calm.known(site.url, NUM_STREAMS + NUM_LATE, MAX_TOKENS)


def test_experts_on_both_workers_answer_as_one_process_does(site: Launched, known: Known) -> None:
    nodes = {actor["rank"]: actor["node"] for actor in ranks_of(site.url, RANKS)}
    assert {nodes[1], nodes[2]} == set(site.workers)
    for stream in start(site.url, NUM_STREAMS, MAX_TOKENS):
        stream.join(60.0)
        assert tuple(stream.token_ids) == known[stream.number]


def test_a_chat_is_answered_as_one_process_does(site: Launched, reference: Reference) -> None:
    body = {
        "messages": [{"role": "user", "content": "Which way does the wind blow?"}],
        "temperature": 0,
        "max_tokens": 40,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    prompt = tuple(said["prompt_token_ids"])
    assert tuple(said["choices"][0]["token_ids"]) == reference.greedy(prompt, 40).token_ids


def test_no_request_fails_when_a_worker_is_cut_off(site: Launched, known: Known) -> None:
    before = {actor["rank"]: actor["node"] for actor in ranks_of(site.url, RANKS)}
    lost = before[0]  # attention, and one of the experts
    assert lost in before.values() and set(before.values()) == set(site.workers)
    raylet = site.raylet(lost)
    under_load(site, known, lambda: site.cut(lost))
    (left,) = set(site.workers) - {lost}
    assert {actor["node"] for actor in ranks_of(site.url, RANKS)} == {left}
    assert experts_of(site.url)["recoveries"][-1]["cause"] == "hang"
    site.mend(lost)
    with timed("a worker that was cut off comes back"):
        site.raylet(lost, but=raylet)
    assert not site.actors(lost), "its former actors must not outlive its return"


def test_no_request_fails_when_a_raylet_is_killed(site: Launched, known: Known) -> None:
    (lost,) = {actor["node"] for actor in ranks_of(site.url, RANKS)}
    raylet = site.raylet(lost)
    under_load(site, known, lambda: os.kill(raylet, signal.SIGKILL))
    (left,) = set(site.workers) - {lost}
    assert {actor["node"] for actor in ranks_of(site.url, RANKS)} == {left}
    with timed("a worker whose raylet was killed comes back"):
        site.raylet(lost, but=raylet)


def under_load(site: Launched, known: Known, strike: Callable[[], None]) -> None:
    """Strike while streams run; those, and more that begin afterwards, end as if nothing was."""
    num_recoveries = len(experts_of(site.url)["recoveries"])
    streams = start(site.url, NUM_STREAMS, MAX_TOKENS)
    assert_under_way(streams)
    strike()
    late = [
        NumberedStream(site.url, number, MAX_TOKENS)
        for number in range(NUM_STREAMS, NUM_STREAMS + NUM_LATE)
    ]
    for stream in late:
        stream.start()
    with timed("streams through a strike"):
        assert_undisturbed(streams + late, known)
    recoveries = experts_of(site.url)["recoveries"][num_recoveries:]
    assert recoveries
    logger.warning("recoveries: %s", recoveries)

"""The number of pipelines follows the load, from none to two and back; no request notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster
from tests.e2e.load import Load
from tests.e2e.reference import Reference
from tests.e2e.streams import LONGEST, Stream, assert_go_on, experts_of, prompt_of

CLIENTS = 12
MAX_TOKENS = 60
TARGET = 4  # requests for each pipeline
FAR = LONGEST - 100  # tokens: more than are made until a pipeline that is to go drains


@pytest.fixture(scope="module")
def url(cluster: Cluster, checkpoint: Path) -> Iterator[str]:
    config = WindroseConfig(
        model=str(checkpoint),
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=LONGEST,
        min_replicas=0,
        max_replicas=2,
        target_ongoing_requests=TARGET,
        upscale_delay_s=0.5,
        downscale_delay_s=1.5,
    )
    with cluster.deployed(config, "scaled") as url:
        yield url


def pipelines(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = experts_of(url)["pipelines"]
    return found


def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)  # nothing to wait on from outside


def cached_tokens(url: str, prompt: list[int]) -> int:
    """How many tokens of a prompt the pipeline that got it knew."""
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def beginnings_are_found(url: str, round_: int) -> bool:
    """Whether six new prompts all go, when they are asked again, where they went first."""
    prompts = [[2 + round_, *range(100 + 40 * i, 148 + 40 * i)] for i in range(6)]
    assert [cached_tokens(url, prompt) for prompt in prompts] == [0] * 6
    return [cached_tokens(url, [*prompt, 9]) for prompt in prompts] == [48] * 6


def test_from_none_to_two_and_back(url: str, reference: Reference) -> None:
    known = {i: reference.greedy(tuple(prompt_of(i)), MAX_TOKENS).token_ids for i in range(CLIENTS)}
    assert pipelines(url) == []
    assert httpx.get(f"{url}/health").status_code == 200, "the next request starts one"
    first = Stream(url, prompt_of(0), MAX_TOKENS)
    first.run()
    assert tuple(first.token_ids) == reference.greedy(tuple(prompt_of(0)), MAX_TOKENS).token_ids
    assert len(pipelines(url)) == 1

    with Load(url, CLIENTS, MAX_TOKENS) as load:
        until(lambda: len(pipelines(url)) == 2)
        load.more(2 * CLIENTS)
        # Four that are to see a pipeline go, and as many as keep two until they leave.
        long = [Stream(url, prompt_of(i), FAR) for i in range(4)]
        passing = [Stream(url, prompt_of(i), FAR) for i in range(TARGET + 1)]
        for stream in long + passing:
            stream.start()
            assert stream.started.wait(30.0)
    assert set(load.take()) == set(known.items())

    # Where the load has just changed a beginning may be left for it: but not again and again.
    assert any(beginnings_are_found(url, round_) for round_ in range(3))
    assert not any(stream.done for stream in passing), "they no longer kept two"
    for stream in passing:
        stream.leave()
    until(lambda: len(pipelines(url)) == 1)
    assert not all(stream.done for stream in long), "they ended before one was to go"
    assert_go_on(long)
    for stream in long:
        stream.leave()
        stream.join(60.0)
        assert not stream.is_alive() and stream.error is None, stream.error
        assert tuple(stream.token_ids[:MAX_TOKENS]) == known[long.index(stream)]

    until(lambda: pipelines(url) == [])
    assert httpx.get(f"{url}/health").status_code == 200
    time.sleep(3.0)
    assert pipelines(url) == [], "nothing may wake one but a request"
    again = Stream(url, prompt_of(1), MAX_TOKENS)
    again.run()
    assert tuple(again.token_ids) == known[1]

"""What clients do to a running server: leave, send nonsense, use the official library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import openai
import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster
from tests.e2e.reference import Reference
from tests.e2e.test_topologies import sum_of

DEMO = Path("configs/demo")
QUESTION = "What is Windrose?"


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    """The demo checkpoint in fp32 with two expert actors."""
    config = WindroseConfig(
        model=str(DEMO),
        dtype="float32",
        expert_actors=2,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_num_batched_tokens=32,
    )
    with cluster.deployed(config, "demo") as url:
        yield url


def test_the_openai_client_gets_what_transformers_says(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=80,
        temperature=0,
        extra_body={"return_token_ids": True},
    )
    whole = answer.to_dict()
    prompt = tuple(cast(list[int], whole["prompt_token_ids"]))
    token_ids = tuple(cast(list[dict[str, list[int]]], whole["choices"])[0]["token_ids"])
    expected = Reference(DEMO).greedy(prompt, len(token_ids))
    assert token_ids == expected.token_ids
    assert answer.choices[0].finish_reason == "stop"
    text = answer.choices[0].message.content
    assert text is not None
    assert "Windrose" in text

    parts = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=80,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(parts)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(token_ids)


def test_the_async_openai_client(url: str) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="demo",
                        messages=[{"role": "user", "content": text}],
                        max_tokens=20,
                        seed=7,
                    )
                    for text in [QUESTION, QUESTION, "Bonjour !"]
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    first, second, other = asyncio.run(ask())
    assert first == second, "the same seed draws the same"
    assert first != other


def test_a_client_that_leaves_frees_its_blocks(url: str) -> None:
    body = {"prompt": "Hello", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60.0) as answer:
        parts = answer.iter_bytes()  # held: a dropped iterator would close the connection
        next(parts)
        assert sum_of(httpx.get(f"{url}/metrics").text, "windrose_num_requests_running") == 1
    for _ in range(200):
        metrics = httpx.get(f"{url}/metrics").text
        if sum_of(metrics, "windrose_num_requests_running") == 0:
            break
    assert sum_of(metrics, "windrose_num_requests_running") == 0
    assert sum_of(metrics, "windrose_kv_cache_usage_perc") == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_logprobs": 1000, "logprobs": True}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_bad_input_is_named_through_the_proxy(
    url: str, body: dict[str, object], param: str
) -> None:
    whole = {"messages": [{"role": "user", "content": QUESTION}], **body}
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        content=json.dumps(whole),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[]", b'{"messages": ' + b"[" * 5000])
def test_bodies_that_are_no_requests(url: str, raw: bytes) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_of_10_megabytes_is_refused(url: str) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": "x" * 10_000_000}]})
    answer = httpx.post(f"{url}/v1/chat/completions", content=raw, timeout=60.0)
    assert answer.status_code == 413
    assert httpx.get(f"{url}/health").status_code == 200


def test_an_unknown_model_is_not_found(url: str) -> None:
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": QUESTION}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"

"""Greedy answers over HTTP equal transformers' on every topology, whatever else is going on."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.schema import WindroseConfig
from model.config import ModelConfig
from model.kv_size import block_bytes
from tests.checkpoints import make_checkpoint
from tests.e2e.deployments import Cluster
from tests.e2e.reference import Reference

MAX_TOKENS = 24
BLOCK_SIZE = 4
LENGTHS = (3, 61, 17, 1, 25, 90, 7, 33, 48, 2, 12, 75, 5, 19, 28, 40)

DEMO = Path("configs/demo")
PLAIN: dict[str, Any] = {"layers": 3, "experts": 8}
SHAPES: dict[tuple[int, int], dict[str, Any]] = {
    (1, 0): {"tie": True, "config_style": "v4"},
    (1, 1): {"head_dim": 24},
    (1, 2): {"sliding_window": 16},
    (1, 3): {"experts": 5, "top_k": 3},
    (1, 8): {"config_style": "v4", "shards": 3},
    (2, 2): {"kv_heads": 1, "rope_theta": 1e6},
    (2, 4): {"top_k": 1},
}


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> tuple[int, int]:
    chosen: tuple[int, int] = request.param
    return chosen


@pytest.fixture
def model(request: pytest.FixtureRequest, topology: tuple[int, int], tmp_path: Path) -> Path:
    """The demo checkpoint, or a random one of a shape that no other topology has."""
    if request.param == "demo":
        return DEMO
    return make_checkpoint(tmp_path / "random", **{**PLAIN, **SHAPES[topology]})


def small_config(checkpoint: Path, attention: int, experts: int) -> WindroseConfig:
    """Chunks that cut prompts, and a cache so small that sequences must be preempted."""
    shape = ModelConfig.from_dir(checkpoint)
    return WindroseConfig(
        model=str(checkpoint),
        dtype="float32",
        attention_actors=attention,
        expert_actors=experts,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        block_size=BLOCK_SIZE,
        max_model_len=128,
        max_num_seqs=16,
        max_num_batched_tokens=24,
        peer_timeout_s=60.0,
        kv_cache_memory_bytes=40 * block_bytes(shape, BLOCK_SIZE, "float32"),
    )


def body(prompt: list[int], *, stream: bool) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 1,
        "return_token_ids": True,
        "stream": stream,
    }


async def ask(client: httpx.AsyncClient, prompt: list[int]) -> tuple[list[int], list[float]]:
    answer = await client.post("/v1/completions", json=body(prompt, stream=False))
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["prompt_token_ids"] == prompt
    assert choice["finish_reason"] == "length"
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


async def ask_streaming(
    client: httpx.AsyncClient, prompt: list[int]
) -> tuple[list[int], list[float]]:
    token_ids: list[int] = []
    logprobs: list[float] = []
    raw = b""
    async with client.stream("POST", "/v1/completions", json=body(prompt, stream=True)) as answer:
        assert answer.status_code == 200
        async for part in answer.aiter_bytes():
            raw += part
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    for line in lines[:-1]:
        choice = json.loads(line)["choices"][0]
        token_ids += choice["token_ids"]
        logprobs += choice["logprobs"]["token_logprobs"]
    return token_ids, logprobs


async def ask_all(
    url: str, prompts: list[list[int]]
) -> list[tuple[list[int], tuple[list[int], list[float]]]]:
    """One alone, one alone streamed, then all at once, half of them streamed."""
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as client:
        answers = [(prompts[1], await ask(client, prompts[1]))]
        answers.append((prompts[5], await ask_streaming(client, prompts[5])))
        together = await asyncio.gather(
            *((ask_streaming if i % 2 else ask)(client, prompt) for i, prompt in enumerate(prompts))
        )
    return answers + list(zip(prompts, together, strict=True))


@pytest.mark.parametrize(
    ("model", "topology"),
    [("random", one) for one in SHAPES] + [("demo", one) for one in ((1, 0), (1, 2))],
    indirect=True,
    ids=lambda value: value if isinstance(value, str) else "A{}-E{}".format(*value),
)
def test_greedy_equals_transformers(
    cluster: Cluster, model: Path, topology: tuple[int, int]
) -> None:
    shape = ModelConfig.from_dir(model)
    draw = random.Random(5)
    prompts = [[1] + [draw.randrange(3, shape.vocab_size) for _ in range(n)] for n in LENGTHS]
    reference = Reference(model)
    with cluster.deployed(small_config(model, *topology), "topology") as url:
        for prompt, (token_ids, logprobs) in asyncio.run(ask_all(url, prompts)):
            expected = reference.greedy(tuple(prompt), MAX_TOKENS)
            assert tuple(token_ids) == expected.token_ids, f"prompt of {len(prompt)}"
            assert logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        check_load(url, shape, *topology)


def test_a_dense_model_on_two_attention_actors(cluster: Cluster, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "mistral", experts=0, sliding_window=16)
    shape, draw = ModelConfig.from_dir(model), random.Random(5)
    prompts = [[1] + [draw.randrange(3, shape.vocab_size) for _ in range(n)] for n in LENGTHS]
    reference = Reference(model)
    with cluster.deployed(small_config(model, 2, 0), "dense") as url:
        for prompt, (token_ids, logprobs) in asyncio.run(ask_all(url, prompts)):
            expected = reference.greedy(tuple(prompt), MAX_TOKENS)
            assert tuple(token_ids) == expected.token_ids, f"prompt of {len(prompt)}"
            assert logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        state = httpx.get(f"{url}/v1/experts").json()
        assert (state["placement"], state["tokens"]) == ([], [])
        assert [actor["role"] for actor in state["actors"][:3]] == ["attention"] * 2 + ["router"]
        metrics = httpx.get(f"{url}/metrics").text
        rows = [x for x in metrics.splitlines() if x.startswith("windrose_engine_rows_total")]
        assert len(rows) == 2 and all(float(row.rsplit(" ", 1)[1]) > 0 for row in rows)
        assert "windrose_expert_tokens_total{" not in metrics
        refused = httpx.post(f"{url}/v1/experts/rebalance")
        assert refused.is_client_error and "dense" in refused.json()["error"]["message"]
        hello = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
        assert httpx.post(f"{url}/v1/chat/completions", json=hello).status_code == httpx.codes.OK


def check_load(url: str, shape: ModelConfig, attention: int, experts: int) -> None:
    """Counts are exact, placement is whole, and the squeeze was real."""
    state = httpx.get(f"{url}/v1/experts").json()
    roles = [actor["role"] for actor in state["actors"]]
    size = attention + experts
    assert roles == ["attention"] * attention + ["expert"] * experts + ["router", "ingress"]
    assert [actor["rank"] for actor in state["actors"]] == [*range(size), None, None]
    assert len({actor["pid"] for actor in state["actors"]}) == size + 2
    holders = {rank for layer in state["placement"] for ranks in layer for rank in ranks}
    owners = range(attention, attention + experts) if experts else range(attention)
    assert holders == set(owners)
    metrics = httpx.get(f"{url}/metrics").text
    rows = sum_of(metrics, "windrose_engine_rows_total")
    assert [sum(layer) for layer in state["tokens"]] == [shape.top_k * rows] * shape.num_layers
    if shape.sliding_window is None:  # with one, these sequences need only so much
        assert sum_of(metrics, "windrose_num_preemptions_total") > 0
    assert sum_of(metrics, "windrose_num_requests_running") == 0
    assert sum_of(metrics, "windrose_kv_cache_usage_perc") == 0


def sum_of(metrics: str, name: str) -> float:
    values = [
        float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name)
    ]
    assert values, f"no {name} in the metrics"
    return sum(values)

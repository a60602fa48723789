"""A model from the hub by name, of a kind that draws no tokens, with its experts apart."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import MixtralModel

from configs.schema import WindroseConfig
from tests.checkpoints import make_checkpoint
from tests.e2e.deployments import Cluster
from tests.e2e.streams import experts_of, ranks_of
from tests.greedy_reference import make_prompts
from tests.hub_server import HubServer, hub_server

NAME = "someone/embeds"
LENGTHS = (40, 400, 7, 250, 150, 399, 1, 64)
TOLERANCE = 2e-5
RANKS = [0, 1, 2]


def embed(url: str, prompts: list[tuple[int, ...]]) -> np.ndarray[Any, Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=NAME, input=[list(one) for one in prompts])
    return np.array([item.embedding for item in answer.data])


@torch.inference_mode()
def expected(directory: Path, prompts: list[tuple[int, ...]]) -> np.ndarray[Any, Any]:
    model: Any = MixtralModel.from_pretrained(directory, dtype=torch.float32).eval()
    means = [model(torch.tensor([one])).last_hidden_state[0].mean(0) for one in prompts]
    return np.stack([(mean / mean.norm()).numpy() for mean in means])


def test_it_embeds_also_while_its_actors_die(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = make_checkpoint(tmp_path / "published", head="Model", layers=3, shards=5)
    prompts = make_prompts(512, LENGTHS)
    want = expected(published, prompts)
    with hub_server({NAME: published}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        config = WindroseConfig(
            model=NAME,
            download_dir=str(tmp_path / "cache"),
            pooling="mean",
            expert_actors=2,
            cpus_per_actor=0.1,
            threads_per_actor=1,
            max_model_len=400,
            max_num_batched_tokens=64,
        )
        with cluster.deployed(config, "embeds") as url:
            assert hub.whole() == sorted(one.name for one in published.glob("*.safetensors"))
            check(url, prompts, want, hub)


def check(
    url: str, prompts: list[tuple[int, ...]], want: np.ndarray[Any, Any], hub: HubServer
) -> None:
    np.testing.assert_allclose(embed(url, prompts), want, rtol=0, atol=TOLERANCE)
    hub.forget()
    for rank in (0, 1):
        with ThreadPoolExecutor(8) as clients:
            asked = [clients.submit(embed, url, prompts) for _ in range(8)]
            os.kill(ranks_of(url, RANKS)[rank]["pid"], signal.SIGKILL)
            for one in asked:
                np.testing.assert_allclose(one.result(), want, rtol=0, atol=TOLERANCE)
    ranks_of(url, RANKS)  # whole again
    assert [one["dead"] for one in experts_of(url)["recoveries"]] == [
        [["attention", 0]],
        [["expert", 1]],
    ]
    assert hub.fetched == []  # replacements found it all here
    refused = httpx.post(f"{url}/v1/completions", json={"prompt": "x"})
    assert refused.status_code == 400 and "a MixtralModel, which" in refused.text

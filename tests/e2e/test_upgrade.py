"""Another configuration, then other weights, while requests come and go: none fails, none mixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve

from cluster.app import build_app
from configs.schema import WindroseConfig
from tests.checkpoints import make_checkpoint
from tests.e2e.conftest import VOCAB
from tests.e2e.deployments import Cluster
from tests.e2e.load import Load, calm_answers
from tests.e2e.reference import Reference
from tests.e2e.streams import LONGEST, Stream, assert_go_on, experts_of, prompt_of

NAME = "upgrade"
CLIENTS = 4
MAX_TOKENS = 120
FAR = LONGEST - 100  # tokens: more than are made while a pipeline starts


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape and vocabulary, other weights."""
    return make_checkpoint(
        tmp_path_factory.mktemp("e2e") / "other-mixtral",
        hidden=64,
        layers=3,
        heads=4,
        kv_heads=2,
        ffn=96,
        experts=8,
        top_k=2,
        vocab=VOCAB,
        seed=7,
        max_positions=LONGEST,
    )


def upgrade(config: WindroseConfig, url: str, load: Load) -> set[str]:
    """As `serve deploy` does; returns the pipelines, once a new one is among them."""
    before = pipelines(url)
    target = serve.RunTarget(target=build_app(config), name=NAME, route_prefix=f"/{NAME}")
    serve.run_many([target], wait_for_applications_running=False)
    while pipelines(url) <= before:
        load.more(1)
    return pipelines(url)


def pipelines(url: str) -> set[str]:
    return {one["pipeline"] for one in experts_of(url)["pipelines"]}


def settle(url: str, load: Load, gone: set[str]) -> None:
    """Wait until these drain, and every answer from now on is a new one's."""
    while pipelines(url) & gone:
        load.more(1)
    load.more(2 * CLIENTS)
    load.take()
    load.more(CLIENTS)


def test_upgrades_under_load(
    cluster: Cluster, checkpoint: Path, other_checkpoint: Path, reference: Reference
) -> None:
    first = WindroseConfig(
        model=str(checkpoint), cpus_per_actor=0.1, threads_per_actor=1, max_model_len=LONGEST
    )
    shape = {"attention_actors": 2, "expert_actors": 2, "max_num_seqs": 32}
    with cluster.deployed(first, NAME) as url:
        old = calm_answers(url, CLIENTS, MAX_TOKENS)
        assert old[1] == reference.greedy(tuple(prompt_of(1)), MAX_TOKENS).token_ids
        with Load(url, CLIENTS, MAX_TOKENS) as load:
            before = pipelines(url)
            upgrade(first.model_copy(update=shape), url, load)
            seen = load.take()
            settle(url, load, before)
            ranks = [one["rank"] for one in experts_of(url)["actors"] if one["role"] == "expert"]
            assert ranks == [2, 3]
            assert set(seen + load.take()) <= set(enumerate(old))

            before = pipelines(url)
            long = Stream(url, prompt_of(3), FAR)
            long.start()
            assert long.started.wait(30.0)
            upgrade(first.model_copy(update={"model": str(other_checkpoint)}), url, load)
            assert not long.done, "it ended before the new weights were there"
            assert_go_on([long])
            seen = load.take()
            long.leave()
            settle(url, load, before)
            latest = load.take()
            long.join(60.0)
        assert not long.is_alive() and long.error is None, long.error
        new = calm_answers(url, CLIENTS, MAX_TOKENS)
        assert not set(old) & set(new)
        assert set(latest) <= set(enumerate(new))
        seen += load.take()
        assert set(seen) <= {*enumerate(old), *enumerate(new)}, "an answer of both"
        assert any(tokens == old[i] for i, tokens in seen)
        assert tuple(long.token_ids[:MAX_TOKENS]) == old[3]
        assert reference.would_say(tuple(prompt_of(3)), tuple(long.token_ids))

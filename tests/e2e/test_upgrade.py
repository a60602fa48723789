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
from tests.e2e.streams import Stream, experts_of, prompt_of

NAME = "upgrade"
CLIENTS = 8
MAX_TOKENS = 120
FAR = 3000  # tokens: more than are made while a pipeline starts


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
    )


def upgrade(config: WindroseConfig) -> None:
    """As `serve deploy` does; returns when all that is old has gone, or is about to go."""
    serve.run(build_app(config), name=NAME, route_prefix=f"/{NAME}")


def pipelines(url: str) -> set[str]:
    return {one["pipeline"] for one in experts_of(url)["pipelines"]}


def test_upgrades_under_load(
    cluster: Cluster, checkpoint: Path, other_checkpoint: Path, reference: Reference
) -> None:
    first = WindroseConfig(
        model=str(checkpoint), cpus_per_actor=0.1, threads_per_actor=1, max_model_len=3600
    )
    shape = {"attention_actors": 2, "expert_actors": 2, "max_num_seqs": 32}
    with cluster.deployed(first, NAME) as url:
        old = calm_answers(url, CLIENTS, MAX_TOKENS)
        assert old[1] == reference.greedy(tuple(prompt_of(1)), MAX_TOKENS).token_ids
        with Load(url, CLIENTS, MAX_TOKENS) as load:
            load.more(CLIENTS)
            before = pipelines(url)
            upgrade(first.model_copy(update=shape))
            load.more(2 * CLIENTS)
            after = pipelines(url)
            assert not before & after
            ranks = [one["rank"] for one in experts_of(url)["actors"] if one["role"] == "expert"]
            assert ranks == [2, 3]
            answers = load.take()
            assert set(answers) <= set(enumerate(old))

            long = Stream(url, prompt_of(3), FAR)
            long.start()
            assert long.started.wait(30.0)
            upgrade(first.model_copy(update={"model": str(other_checkpoint)}))
            assert not long.done, "it ended before the new weights were there"
            load.more(2 * CLIENTS)
            assert pipelines(url).isdisjoint(before | after)
            long.join(120.0)
        new = calm_answers(url, CLIENTS, MAX_TOKENS)
        answers = load.take()
        assert not set(old) & set(new)
        assert set(answers) <= {*enumerate(old), *enumerate(new)}, "an answer of both"
        assert any(tokens == old[i] for i, tokens in answers)
        assert any(tokens == new[i] for i, tokens in answers)
        assert long.done, long.error
        assert len(long.token_ids) == FAR
        assert tuple(long.token_ids[:MAX_TOKENS]) == old[3]
        again = Stream(url, prompt_of(3), FAR)
        again.start()
        again.join(120.0)
        assert again.token_ids != long.token_ids

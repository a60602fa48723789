"""Models by name, over a server that speaks the hub's API: what is fetched, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.hub import HubModel, find_model
from actors.hub_access import HubAccess, HubError
from actors.model_plan import ModelPlan, check_checkpoint, model_directory, plan_model
from actors.ranks.engine_build import colocated_engine
from actors.ranks.expert import ExpertRank
from actors.ranks.progress import Progress
from configs.schema import WindroseConfig
from model.checkpoint import files_of
from model.fingerprint import commit_fingerprint
from model.shards import CheckpointError
from model.tokenizer import Tokenizer
from model.weights import attention_keys, expert_keys
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import assert_same, greedy_requests, make_prompts, run_engine
from tests.hub_server import COMMIT, HubServer, hub_server

CPU = torch.device("cpu")
NAME = "someone/Mixtral-tiny"
SHARDS = 6


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the original repository has it: shards, and the same weights twice more."""
    directory = make_checkpoint(tmp_path_factory.mktemp("hub"), shards=SHARDS, layers=3)
    (directory / "generation_config.json").write_text('{"temperature": 0.5}')
    for copy in ("consolidated.00.pt", "consolidated.safetensors", "pytorch_model.bin"):
        (directory / copy).write_bytes(b"not to be fetched")
    return directory


@pytest.fixture
def hub(published: Path) -> Iterator[HubServer]:
    gated = frozenset({"someone/gated"})
    with hub_server({NAME: published, "someone/gated": published}, gated=gated) as server:
        yield server


def config(cache: Path, **settings: Any) -> WindroseConfig:
    return WindroseConfig(model=NAME, download_dir=str(cache), **settings)


def found(hub: HubServer, cache: Path, **settings: Any) -> HubModel:
    model = find_model(config(cache, **settings), {"HF_ENDPOINT": hub.url})
    assert model is not None
    return model


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read once, at its import


def test_planning_fetches_small_files_and_headers(hub: HubServer, tmp_path: Path) -> None:
    source, settings = found(hub, tmp_path), config(tmp_path, expert_actors=2)
    plan = plan_model(settings, "cpu", source)
    assert (source.commit, settings.model_name) == (COMMIT, NAME)
    assert plan.model.num_layers == 3
    assert hub.whole() == hub.whole(".pt") == hub.whole(".bin") == []
    assert sorted(name for name, part in hub.fetched if part) == [
        f"model-{shard:05}-of-{SHARDS:05}.safetensors" for shard in range(1, SHARDS + 1)
    ]
    small = ["config.json", "generation_config.json", "model.safetensors.index.json",
             "tokenizer.model", "tokenizer_config.json"]  # fmt: skip
    assert sorted(name for name, part in hub.fetched if part is None) == small
    directory = model_directory(settings, source)
    assert sorted(one.name for one in Path(directory).iterdir()) == small
    assert Tokenizer.from_dir(directory).vocab_size == 512
    hub.forget()
    plan_model(settings, "cpu", source, headers=False)  # as the router does
    assert hub.fetched == []


def test_an_expert_actor_fetches_the_files_of_its_experts_alone(
    hub: HubServer, published: Path, tmp_path: Path
) -> None:
    source = found(hub, tmp_path / "head")
    plan = plan_model(config(tmp_path / "head", expert_actors=3), "cpu", source)
    hub.forget()
    elsewhere = on_another_machine(plan, tmp_path / "node")
    progress = Progress()
    rank = ExpertRank(elsewhere, CPU, progress)
    rank.load([(0, 1)])
    keys = expert_keys(plan.model, 0, 1)
    wanted = files_of(published, keys)
    assert hub.whole() == wanted and 0 < len(wanted) < SHARDS
    tensors = {
        key: tensor for name in wanted for key, tensor in load_file(published / name).items()
    }
    expert = sum(tensors[key].nbytes for key in keys)
    assert progress.total_bytes == progress.read_bytes == expert
    rank.want([(2, 3)])
    rank.hold([(2, 3)])  # an expert that comes later brings its files
    more = files_of(published, expert_keys(plan.model, 2, 3))
    assert hub.whole() == sorted({*wanted, *more})
    assert set(rank._shard.held) == {(0, 1), (2, 3)}
    hub.forget()
    elsewhere.checkpoint(frozenset(attention_keys(plan.model)))
    assert set(hub.whole()) == set(files_of(published, attention_keys(plan.model))) - {
        *wanted, *more,
    }  # fmt: skip


def on_another_machine(plan: ModelPlan, cache: Path) -> ModelPlan:
    """The plan as an actor unpacks it where nothing is cached yet."""
    assert plan.hub is not None
    moved = replace(plan.hub, access=replace(plan.hub.access, cache_dir=str(cache)))
    there: ModelPlan = pickle.loads(pickle.dumps(replace(plan, hub=moved)))
    return there


def test_what_was_fetched_answers_as_the_directory_does(
    hub: HubServer, published: Path, tmp_path: Path
) -> None:
    prompts = make_prompts(512, (5, 33))
    settings = config(tmp_path, max_model_len=64, block_size=4)
    plan = plan_model(settings, "cpu", found(hub, tmp_path))
    local = plan_model(settings.model_copy(update={"model": str(published)}), "cpu")
    got, want = (
        run_engine(colocated_engine(one, CPU).engine, greedy_requests(prompts, 8))
        for one in (plan, local)
    )
    assert_same(got, want)
    assert len(hub.whole()) == SHARDS


def test_the_commit_is_kept_while_the_branch_goes_on(hub: HubServer, tmp_path: Path) -> None:
    source = found(hub, tmp_path)
    hub.commit = "f" * 40
    assert found(hub, tmp_path).commit == "f" * 40
    with pytest.raises(HubError, match=f"no revision '{COMMIT}'"):
        found(hub, tmp_path, revision=COMMIT)
    hub.commit = COMMIT
    assert found(hub, tmp_path, revision=COMMIT) == source
    one, other = (commit_fingerprint(NAME, sha, "float32/16") for sha in (COMMIT, "f" * 40))
    assert one != other and one == commit_fingerprint(NAME, COMMIT, "float32/16")


def test_a_token_travels_and_is_not_shown(hub: HubServer, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    source = found(hub, tmp_path)
    assert hub.tokens == {"hf_secret"}
    assert "hf_secret" not in repr(source)
    hub.tokens.clear()
    monkeypatch.delenv("HF_TOKEN")
    there: HubModel = pickle.loads(pickle.dumps(source))
    there.directory()
    assert hub.tokens == {"hf_secret"}


def test_what_the_environment_says_of_the_cache_goes_along(monkeypatch: Any) -> None:
    plain = WindroseConfig(model=NAME)
    assert HubAccess.of(plain, {}).cache_dir is None  # each machine's own
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/elsewhere/hub")
    assert HubAccess.of(plain, {"HF_HOME": "/elsewhere"}).cache_dir == "/elsewhere/hub"
    given = WindroseConfig(model=NAME, download_dir="/here")
    assert HubAccess.of(given, {"HF_HOME": "/elsewhere"}).cache_dir == "/here"


def test_offline_the_cache_must_have_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, part = tmp_path / "full", tmp_path / "part"
    check_checkpoint(config(part), found(hub, part))
    source = found(hub, full)
    whole = plan_model(config(full), "cpu", source)
    whole.checkpoint(frozenset(attention_keys(whole.model)))
    offline(monkeypatch)
    hub.forget()
    for cache in (full, part):
        # Of files that are not here the names are checked; whoever needs them says so.
        plan = plan_model(config(cache), "cpu", found(hub, cache))
        assert plan.hub is not None and plan.hub.commit == COMMIT
    with pytest.raises(HubError, match=r"safetensors is not in .*part.* offline mode"):
        plan.checkpoint(frozenset(attention_keys(plan.model)))
    with pytest.raises(HubError, match=r"config\.json is not in .*none.* offline mode"):
        found(hub, tmp_path / "none")
    assert hub.fetched == []


def test_a_hub_that_cannot_be_reached(hub: HubServer, tmp_path: Path) -> None:
    source = found(hub, tmp_path)
    source.directory()
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    again = find_model(config(tmp_path), {"HF_ENDPOINT": closed})
    assert again is not None and again.commit == COMMIT  # what is cached serves
    with pytest.raises(HubError, match=f"^{NAME}: {closed} cannot be reached: "):
        find_model(config(tmp_path / "none"), {"HF_ENDPOINT": closed})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model": "someone/absent"}, "someone/absent: neither a directory here nor a model at"),
        ({"model": "someone/gated"}, "someone/gated: access is restricted: ask for it at"),
        ({"revision": "v9"}, "no revision 'v9' at"),
        ({"model": "."}, "download_dir is for models of the hub"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    hub: HubServer, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    asked = WindroseConfig.model_validate({"model": NAME, "download_dir": str(tmp_path)} | settings)
    with pytest.raises(HubError, match=message) as caught:
        find_model(asked, {"HF_ENDPOINT": hub.url})
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_are_named(published: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    shard = f"model-00002-of-{SHARDS:05}.safetensors"
    with hub_server({NAME: copy}) as hub:
        (copy / shard).rename(copy / "aside")
        with pytest.raises(HubError, match=f"{shard} is not among its files; .* names it"):
            check_checkpoint(config(tmp_path / "a"), found(hub, tmp_path / "a"))
        (copy / "aside").rename(copy / shard)
        data = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(data | {"intermediate_size": 97}))
        with pytest.raises(CheckpointError, match=r"w1\.weight: expected shape \[97, 64\], found"):
            check_checkpoint(config(tmp_path / "b"), found(hub, tmp_path / "b"))
        (copy / "model.safetensors.index.json").unlink()
        with pytest.raises(HubError, match=r"model\.safetensors is not among its files, nor is"):
            check_checkpoint(config(tmp_path / "c"), found(hub, tmp_path / "c"))
        (copy / "config.json").unlink()
        with pytest.raises(HubError, match=r"config\.json is not among its files"):
            found(hub, tmp_path / "d")


def test_a_single_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    single = make_checkpoint(tmp_path / "single", layers=1, head="Model")
    with hub_server({NAME: single}) as hub:
        plan = plan_model(config(tmp_path / "cache"), "cpu", found(hub, tmp_path / "cache"))
        assert hub.whole() == []
        checkpoint = plan.checkpoint(frozenset(attention_keys(plan.model)))
        assert hub.whole() == ["model.safetensors"]
    assert checkpoint.read("model.norm.weight").shape == (64,)


@pytest.mark.parametrize("name", ["a/b", "mistralai/Mixtral-8x7B-Instruct-v0.1"])
def test_names_of_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = WindroseConfig(model=name)
    assert asked.is_on_hub and asked.model_name == name
    (tmp_path / name).mkdir(parents=True)
    assert not asked.is_on_hub and asked.model_name == Path(name).name


@pytest.mark.parametrize("path", ["model", "./a/b", "/a/b", "a/b/c", "a/", "../b", "a b/c"])
def test_paths_are_no_names_of_the_hub(path: str) -> None:
    assert not WindroseConfig(model=path).is_on_hub

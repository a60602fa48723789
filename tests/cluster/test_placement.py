"""From a topology to bundles, and which bundle an actor gets."""

from __future__ import annotations

import pytest

from actors.pipeline.bundles import Kind, Needs, actor_bundles, pick_bundle
from cluster.placement import cpus_needed, deployment_bundles, pipeline_bundles, strategy
from configs.schema import WindroseConfig

ROUTER = {"CPU": 0.1}


def new_config(**settings: object) -> WindroseConfig:
    return WindroseConfig.model_validate({"model": "m"} | settings)


def test_every_actor_has_a_gpu_of_its_own_and_the_router_none() -> None:
    config = new_config(attention_actors=2, expert_actors=4, spare_actors=1, cpus_per_actor=2)
    assert pipeline_bundles(config, "cuda") == [ROUTER] + [{"CPU": 2.0, "GPU": 1.0}] * 7
    assert pipeline_bundles(config, "cpu") == [ROUTER] + [{"CPU": 2.0}] * 7


def test_roles_lie_on_their_accelerators() -> None:
    config = new_config(
        attention_actors=1, expert_actors=2, attention_accelerator="A", expert_accelerator="B"
    )
    actor = {"CPU": 1.0, "GPU": 1.0}
    on_b = actor | {"accelerator_type:B": 0.001}
    assert pipeline_bundles(config, "cuda") == [
        ROUTER, actor | {"accelerator_type:A": 0.001}, on_b, on_b
    ]  # fmt: skip
    assert pipeline_bundles(config, "cpu")[1] == {"CPU": 1.0, "accelerator_type:A": 0.001}


def test_the_share_of_an_accelerator_is_what_ray_asks_itself() -> None:
    from ray._common.utils import resources_from_ray_options

    theirs = resources_from_ray_options({"accelerator_type": "B", "num_cpus": 1, "num_gpus": 1})
    config = new_config(expert_actors=1, expert_accelerator="B")
    assert pipeline_bundles(config, "cuda")[2] == theirs


def test_experts_that_live_with_attention_have_no_accelerator_of_their_own() -> None:
    with pytest.raises(ValueError, match="expert_accelerator is B, but expert_actors is 0"):
        pipeline_bundles(new_config(expert_accelerator="B"), "cpu")


def test_a_deployment_is_all_its_pipelines_and_ingresses() -> None:
    config = new_config(expert_actors=2, replicas=3, ingress_replicas=2, cpus_per_actor=0.5)
    assert len(deployment_bundles(config, "cpu", 3)) == 2 + 3 * 4
    assert cpus_needed(config) == pytest.approx(2 * 0.1 + 3 * (0.1 + 3 * 0.5))


def test_strategies_are_ray_s_and_never_strict() -> None:
    assert strategy(new_config()) == "PACK"
    assert strategy(new_config(placement="spread")) == "SPREAD"
    with pytest.raises(ValueError, match="placement"):
        new_config(placement="strict")


@pytest.mark.parametrize(
    ("attention", "expert", "spare", "replaces"),
    [
        (None, None, None, {"attention", "expert"}),
        ("A", None, "A", {"attention", "expert"}),
        (None, "B", "B", {"attention", "expert"}),
        ("A", "A", "A", {"attention", "expert"}),
        ("A", "B", "B", {"expert"}),
    ],
)
def test_a_spare_lies_where_it_can_replace_most(
    attention: str | None, expert: str | None, spare: str | None, replaces: set[str]
) -> None:
    config = new_config(expert_actors=2, attention_accelerator=attention, expert_accelerator=expert)
    needs = Needs.of(config, "cpu")
    assert [n for n in needs.spare if n != "CPU"] == (
        [] if spare is None else [f"accelerator_type:{spare}"]
    )
    assert needs.roles(needs.spare) == replaces


def test_a_spare_of_a_colocated_pipeline_replaces_attention() -> None:
    needs = Needs.of(new_config(attention_accelerator="A"), "cpu")
    assert needs.spare == needs.attention
    assert needs.roles(needs.spare) == {"attention"}


class Handing:
    """Bundles handed out and taken back."""

    def __init__(self, **settings: object) -> None:
        config = new_config(**settings)
        self.needs = Needs.of(config, "cuda")
        self.free = dict(enumerate(actor_bundles(config, "cuda"), start=1))
        self.all = dict(self.free)

    def take(self, kind: Kind) -> int | None:
        index = pick_bundle(self.free, kind, self.needs)
        if index is not None:
            del self.free[index]
        return index

    def give_back(self, index: int) -> None:
        self.free[index] = self.all[index]


@pytest.mark.parametrize("attention", [None, "A"])
@pytest.mark.parametrize("expert", [None, "B", "A"])
def test_in_whatever_order_actors_start_each_gets_a_bundle_of_its_role(
    attention: str | None, expert: str | None
) -> None:
    orders: list[list[Kind]] = [
        ["attention", "attention", "expert", "expert", "spare"],
        ["expert", "attention", "expert", "attention", "spare"],
        ["spare", "expert", "expert", "attention", "attention"],
    ]
    for order in orders:
        hand = Handing(
            attention_actors=2, expert_actors=2, spare_actors=1,
            attention_accelerator=attention, expert_accelerator=expert,
        )  # fmt: skip
        for kind in order:
            index = hand.take(kind)
            assert index is not None
            wanted = hand.needs.of_kind(kind)
            assert dict(hand.all[index]) == dict(wanted), (order, kind)
        assert not hand.free


def test_the_next_actor_of_a_role_gets_the_bundle_of_the_one_that_died() -> None:
    hand = Handing(expert_actors=2, attention_accelerator="A", expert_accelerator="B")
    attention, first, second = (hand.take(kind) for kind in ("attention", "expert", "expert"))
    assert (attention, first, second) == (1, 2, 3)
    hand.give_back(1)
    assert hand.take("expert") is None  # it goes beyond the bundles rather than to a wrong machine
    assert hand.take("attention") == 1
    hand.give_back(2)
    assert hand.take("attention") is None
    assert hand.take("expert") == 2


def test_what_is_scarce_is_left_to_whom_needs_it() -> None:
    hand = Handing(attention_actors=1, expert_actors=1, expert_accelerator="B")
    assert hand.take("attention") == 1
    hand.give_back(1)
    assert hand.take("expert") == 2
    hand.give_back(2)
    assert hand.take("attention") == 1  # not the expert's, although it would do


def test_a_spare_takes_a_bundle_that_is_fit_for_less_than_none() -> None:
    """An attention actor died, a spare with more took over: its own place is left for the next."""
    hand = Handing(expert_actors=1, spare_actors=1, expert_accelerator="B")
    assert [hand.take(kind) for kind in ("attention", "expert", "spare")] == [1, 2, 3]
    hand.give_back(1)
    assert hand.take("spare") == 1
    assert hand.needs.roles(hand.all[1]) == {"attention"}
    assert hand.needs.roles(hand.all[3]) == {"attention", "expert"}
    assert hand.take("spare") is None

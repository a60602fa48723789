"""What each role asks of Ray, and which of a pipeline's bundles an actor is to get: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs.schema import WindroseConfig

Role = Literal["attention", "expert"]
Kind = Literal["attention", "expert", "spare"]
Resources = Mapping[str, float]  # as Ray names them, of one actor or bundle

ACCELERATOR = "accelerator_type:"
# What Ray itself asks of a node's accelerator resource, of which every node that has it has 1.
_ACCELERATOR_SHARE = 0.001


@dataclass(frozen=True, slots=True)
class Needs:
    """What an actor of each role must be given."""

    attention: Resources
    expert: Resources
    has_experts: bool = True

    @classmethod
    def of(cls, config: WindroseConfig, device: str) -> Needs:
        """As configured, on a resolved device.

        Raises:
            ValueError: an accelerator for experts that live in the attention actors.
        """
        if config.expert_accelerator is not None and not config.expert_actors:
            raise ValueError(
                f"expert_accelerator is {config.expert_accelerator}, but expert_actors is 0: the "
                "experts live in the attention actors (attention_accelerator says where)"
            )
        actor = {"CPU": config.cpus_per_actor} | ({"GPU": 1.0} if device == "cuda" else {})
        return cls(
            actor | _on(config.attention_accelerator),
            actor | _on(config.expert_accelerator),
            config.expert_actors > 0,
        )

    @property
    def spare(self) -> Resources:
        """Where one place is fit for both roles, that; else an expert's."""
        if not self.has_experts or covers(self.attention, self.expert):
            return self.attention
        return self.expert

    def of_kind(self, kind: Kind) -> Resources:
        """What an actor asks for that is started as this."""
        if kind == "spare":
            return self.spare
        return self.attention if kind == "attention" else self.expert

    def roles(self, bundle: Resources) -> frozenset[Role]:
        """The roles that an actor in this bundle can have."""
        fit: dict[Role, bool] = {
            "attention": covers(bundle, self.attention),
            "expert": self.has_experts and covers(bundle, self.expert),
        }
        return frozenset(role for role, fits in fit.items() if fits)


def actor_bundles(config: WindroseConfig, device: str) -> list[Resources]:
    """A bundle for every attention actor of a pipeline, then every expert actor, then every spare.

    Raises:
        ValueError: see Needs.of.
    """
    needs = Needs.of(config, device)
    return [
        *[needs.attention] * config.attention_actors,
        *[needs.expert] * config.expert_actors,
        *[needs.spare] * config.spare_actors,
    ]


def covers(bundle: Resources, wanted: Resources) -> bool:
    """Whether a bundle has all that is wanted, and so lies where that can be had."""
    return all(bundle.get(name, 0.0) >= amount for name, amount in wanted.items())


def pick_bundle(free: Mapping[int, Resources], kind: Kind, needs: Needs) -> int | None:
    """The free bundle for an actor of this kind; None: it needs one beyond the pipeline's.

    The first of the least that do, so that what is scarce is left to whom needs it. A spare takes
    any: better one that can replace some actors than none.
    """
    wanted = needs.of_kind(kind)
    fit = [index for index, bundle in free.items() if covers(bundle, wanted)]
    if not fit and kind == "spare":
        fit = list(free)
    return min(fit, key=lambda index: (len(free[index]), index), default=None)


def _on(accelerator: str | None) -> dict[str, float]:
    return {} if accelerator is None else {ACCELERATOR + accelerator: _ACCELERATOR_SHARE}

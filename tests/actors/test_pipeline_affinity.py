"""A pipeline sends a conversation on to the attention actor that has its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from actors.messages import GenerateRequest
from tests.actors.fake_pipeline import Rig, requests, settle, supervised
from tests.actors.virtual_time import run

PROMPT = tuple(range(10))  # two blocks of four and a part


def asking(*prompts: Sequence[int]) -> list[GenerateRequest]:
    (plain,) = requests("r")
    return [replace(plain, prompt_token_ids=tuple(prompt)) for prompt in prompts]


def scenario(rig: Rig) -> list[list[int]]:
    """The ranks that five turns of two conversations go to; rank 1 dies before the last two."""
    ranks: list[list[int]] = []

    async def turn(*prompts: Sequence[int]) -> None:
        names = await rig.pipeline.submit(asking(*prompts))
        by_name = {member.name: rank for rank, member in rig.crew.attention.items()}
        ranks.append([by_name[name] for name in names if name is not None])
        rig.pipeline._intake._unfinished.clear()  # all have ended

    async def talk() -> None:
        async with supervised(rig):
            other = (99, *PROMPT)
            await turn(PROMPT, other)
            await turn((*other, 1), (*other, 2))
            await turn((*PROMPT, 1))
            rig.at(1).die()
            await settle(rig)
            await turn((*other, 1))
            await turn((*PROMPT, 2))

    run(talk())
    return ranks


@pytest.mark.parametrize("num_expert", [0, 2])
def test_turns_follow_their_conversation_until_its_actor_dies(num_expert: int) -> None:
    assert scenario(Rig(2, num_expert)) == [[0, 1], [1, 1], [0], [0], [0]]


def test_without_prefix_caching_the_load_alone_decides() -> None:
    rig: Any = Rig(2, 2)
    limits = replace(rig._plan.limits, enable_prefix_caching=False)
    rig._plan = replace(rig._plan, limits=limits)
    assert scenario(rig) == [[0, 1], [0, 1], [0], [0], [0]]

"""A pipeline that is to go finishes first; what is not for it, it does not take."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from actors.pipeline.pipeline_load import PipelineLoad
from tests.actors.fake_pipeline import Rig, requests, supervised
from tests.actors.virtual_time import run


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_it_waits_for_the_last_request_and_no_longer() -> None:
    rig = Rig(2, 2)

    async def scenario() -> None:
        async with supervised(rig):
            await rig.pipeline.drain(60.0)
            assert now_s() < 1.0, "an idle one has nothing to wait for"
            await rig.pipeline.submit(requests("a", "b", "c"))
            begun_s = now_s()
            asyncio.get_running_loop().call_later(3.0, rig.at(0).submitted.clear)
            asyncio.get_running_loop().call_later(5.0, rig.at(1).submitted.clear)
            await rig.pipeline.drain(60.0)
            assert 4.9 < now_s() - begun_s < 5.5

    run(scenario())


def test_it_waits_for_so_long_at_most() -> None:
    rig = Rig(1, 0)

    async def scenario() -> None:
        async with supervised(rig):
            await rig.pipeline.submit(requests("a"))
            begun_s = now_s()
            await rig.pipeline.drain(7.0)
            assert 6.9 < now_s() - begun_s < 7.5

    run(scenario())


def test_what_other_weights_began_or_is_too_long_is_not_taken() -> None:
    rig = Rig(1, 0)
    (plain,) = requests("a")
    begun = replace(plain, request_id="b", output_token_ids=(5,), weights="other")
    mine = replace(plain, request_id="c", output_token_ids=(5,), weights="p")
    longest = rig._plan.limits.max_model_len
    too_long = replace(plain, request_id="d", prompt_token_ids=(1,) * longest)

    async def scenario() -> None:
        async with supervised(rig):
            names = await rig.pipeline.submit([plain, begun, mine, too_long])
            assert [name is None for name in names] == [False, True, False, True]
            assert [one.request_id for one in rig.at(0).submitted] == ["a", "c"]
            assert await rig.pipeline.submit([begun]) == [None]

    run(scenario())


def test_its_load_is_the_mean_of_the_last_beats() -> None:
    rig = Rig(2, 0)

    async def scenario() -> None:
        async with supervised(rig):
            assert rig.pipeline.load() == PipelineLoad()
            await rig.pipeline.submit(requests("a", "b", "c"))
            await asyncio.sleep(10.0)
            assert rig.pipeline.load() == PipelineLoad(running=3)
            assert rig.pipeline.report().unfinished == 3
            rig.at(0).submitted.clear()
            rig.at(1).submitted.clear()
            await asyncio.sleep(2.1)
            assert 0 < rig.pipeline.load().running < 3
            await asyncio.sleep(5.0)
            assert rig.pipeline.load() == PipelineLoad()

    run(scenario())

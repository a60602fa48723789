"""What an actor is told to have memory ready for is what it comes to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.model_plan import plan_model
from actors.pipeline.spawn import weights_bytes
from actors.ranks.engine_build import all_experts
from configs.schema import WindroseConfig
from model.loading import load_decoder, load_experts
from model.placement import split_evenly
from model.weights import expected_shapes
from tests.bitsandbytes_checkpoints import quantize_checkpoint
from tests.checkpoints import make_checkpoint

CPU = torch.device("cpu")
NOTHING = {"attention": 0, "expert": 0, "spare": 0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sizes"), dtype="bfloat16")


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("num_expert", [0, 2, 3])
def test_it_is_what_the_role_holds(directory: Path, num_expert: int, quantization: str) -> None:
    settings: dict[str, Any] = {"expert_actors": num_expert, "quantization": quantization}
    plan = plan_model(
        WindroseConfig(model=str(directory), quantization_cache="none", **settings), "cpu"
    )
    checkpoint = plan.checkpoint(frozenset(expected_shapes(plan.model)))
    rest = (plan.model, plan.torch_dtype, CPU)
    attention = load_decoder(checkpoint, *rest, bits=plan.bits).num_bytes
    pairs = all_experts(plan)
    if num_expert:
        placement = split_evenly(plan.model.num_layers, plan.model.num_experts, range(num_expert))
        pairs = placement.held_by(0)
    held = load_experts(checkpoint, plan.model, pairs, plan.torch_dtype, CPU, bits=plan.bits)
    if num_expert:
        expected = {"attention": attention, "expert": held.num_bytes, "spare": 0}
    else:
        expected = {"attention": attention + held.num_bytes, "expert": 0, "spare": 0}
    assert weights_bytes(plan) == expected


def test_nothing_is_said_of_memory_that_is_not_the_kernels(directory: Path, tmp_path: Path) -> None:
    quantized = quantize_checkpoint(directory, tmp_path / "stored", "nf4")
    assert weights_bytes(plan_model(WindroseConfig(model=str(directory)), "cuda")) == NOTHING
    in_float32 = WindroseConfig(model=str(directory), dtype="float32")
    assert weights_bytes(plan_model(in_float32, "cpu")) == NOTHING
    assert weights_bytes(plan_model(WindroseConfig(model=str(quantized)), "cpu")) == NOTHING

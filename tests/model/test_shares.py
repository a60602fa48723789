"""What each role reads of a checkpoint, at the published size and measured in a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.weights import attention_keys, attention_shapes, expected_shapes, expert_keys

MIB = 1 << 20
# The published mistralai/Mixtral-8x7B-Instruct-v0.1.
MIXTRAL = ModelConfig(
    hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    intermediate_size=14336, num_experts=8, top_k=2, vocab_size=32000, rms_norm_eps=1e-5,
    rope_theta=1e6, max_position_embeddings=32768, dtype="bfloat16", bos_token_id=1,
    eos_token_ids=(2,),
)  # fmt: skip


def all_experts(config: ModelConfig) -> list[str]:
    return [
        key
        for layer in range(config.num_layers)
        for expert in range(config.num_experts)
        for key in expert_keys(config, layer, expert)
    ]


@pytest.mark.parametrize(("layer", "expert"), [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_an_expert_that_is_not_there_is_refused(layer: int, expert: int) -> None:
    config = MIXTRAL.model_copy(update={"num_layers": 2, "num_experts": 3})
    with pytest.raises(ValueError, match=f"no expert {expert} of layer {layer}"):
        expert_keys(config, layer, expert)


def test_shapes_of_a_role_do_not_depend_on_the_others() -> None:
    shapes = expected_shapes(MIXTRAL)
    assert attention_shapes(MIXTRAL).items() <= shapes.items()
    assert not set(all_experts(MIXTRAL)) & set(attention_keys(MIXTRAL))
    assert len(shapes) == len(all_experts(MIXTRAL)) + len(attention_keys(MIXTRAL)) == 995


def write_hollow(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Writes a bf16 safetensors file whose data are a hole: any size, no disk, reads as zeros."""
    header: dict[str, Any] = {}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def test_mistral_7b_has_the_parameters_of_its_model_card() -> None:
    mistral = MIXTRAL.model_copy(update={"num_experts": 0, "top_k": 0})
    shapes = expected_shapes(mistral)
    assert shapes == attention_shapes(mistral)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 7_241_732_096


@pytest.mark.timeout(20)  # reading what is only to be verified would take far longer
def test_a_whole_mixtral_8x7b_is_verified_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    shapes = expected_shapes(MIXTRAL)
    write_hollow(file, shapes)
    try:
        checkpoint = Checkpoint(tmp_path)
        checkpoint.verify(MIXTRAL)
        parameters = checkpoint.total_bytes(shapes) // 2
        assert parameters == 46_702_792_704  # as its model card has it
        assert checkpoint.total_bytes(expert_keys(MIXTRAL, 31, 7)) == 3 * 14336 * 4096 * 2
        attention = checkpoint.total_bytes(attention_keys(MIXTRAL))
        assert attention + 256 * 3 * 14336 * 4096 * 2 == 2 * parameters
        last = list(shapes)[-1]
        assert not checkpoint.read(last).any()  # lies 93 GB into the file
    finally:
        file.unlink()


MEASURE = """
import sys
import psutil, torch
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.weights import expert_keys

def used():
    return psutil.Process().memory_full_info().uss

def peak():  # not ru_maxrss, which a child inherits from its parent
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

config = ModelConfig.model_validate_json(sys.argv[2], by_name=True)
torch.ones(4).sum()
start, resident = used(), psutil.Process().memory_info().rss
checkpoint = Checkpoint(sys.argv[1])
checkpoint.verify(config)
verified = used()
keys = [key for layer in range(config.num_layers) for key in expert_keys(config, layer, 1)]
held = dict(checkpoint.read_each(keys))
assert all(tensor[0, 0] == 1 for tensor in held.values())
share = sum(tensor.nbytes for tensor in held.values())
print(verified - start, used() - verified, peak() - resident, share)
"""


def test_a_process_holds_its_share_of_the_experts_and_not_the_whole(tmp_path: Path) -> None:
    config = MIXTRAL.model_copy(
        update={
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_layers": 2,
            "num_heads": 8,
            "num_kv_heads": 8,
            "vocab_size": 64,
        }
    )
    save_file(
        {
            key: torch.ones(shape, dtype=torch.bfloat16)
            for key, shape in expected_shapes(config).items()
        },
        tmp_path / "model.safetensors",
    )
    experts = sum(torch.Size(expected_shapes(config)[key]).numel() for key in all_experts(config))
    whole_bytes = 2 * experts
    assert whole_bytes > 190 * MIB
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), config.model_dump_json()],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    verifying, reading, at_most, share = map(int, output.split())
    assert share == whole_bytes // 8
    assert verifying < 4 * MIB
    assert share <= reading < share + 4 * MIB
    assert share <= at_most < share + 16 * MIB  # the peak, pages of any mapped file included

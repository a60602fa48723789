"""The random checkpoints that other tests stand on: are they what they claim to be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import MixtralForCausalLM

from tests.checkpoints import make_checkpoint, write_tokenizer


@pytest.mark.parametrize(("style", "tie"), [("v4", False), ("v5", True)])
def test_greedy_tokens_are_decided_far_above_the_noise_of_float32(
    tmp_path: Path, style: str, tie: bool
) -> None:
    directory = make_checkpoint(tmp_path, config_style="v4" if style == "v4" else "v5", tie=tie)
    model: Any = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompts = torch.randint(3, 512, (8, 12), generator=torch.Generator().manual_seed(5))
    made = model.generate(
        prompts,
        do_sample=False,
        min_new_tokens=40,
        max_new_tokens=40,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    stepwise = torch.stack(made.logits, dim=1)
    model.set_experts_implementation("eager")
    with torch.inference_mode():
        at_once = model(made.sequences).logits[:, 11:-1]
    noise = (stepwise - at_once).abs().max()
    best, second = at_once.topk(2).values.unbind(-1)
    assert best.numel() == 320
    assert (best - second).min() > 50 * noise > 0
    assert (best - second).min() > 1e-3
    assert made.sequences[:, 12:].unique().numel() > 100


@pytest.mark.parametrize("vocab", [320, 512, 4096, 31990])
def test_a_cut_tokenizer_has_the_size_asked_for_and_loses_no_text(
    tmp_path: Path, vocab: int
) -> None:
    write_tokenizer(tmp_path, vocab)
    tokenizer = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert tokenizer.get_piece_size() == vocab
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2)
    text = "The wind rose, été, Straße, 東京, 🧭 and  two spaces"
    ids = tokenizer.encode(text)
    assert 0 not in ids and max(ids) < vocab
    assert tokenizer.decode(ids) == text

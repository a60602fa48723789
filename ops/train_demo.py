"""Train the demo checkpoint: a seven-million-parameter Mixtral on the corpus of ops.demo_corpus.

    python -m ops.train_demo [--out DIR] [--minutes M] [--threads N] [--seed S] [--steps K]

Writes a Hugging Face checkpoint directory. The learning rate follows the steps, so a seed and a
thread count repeat a result; only on a machine too slow for all steps does --minutes cut it short.
Shapes: B conversations of a batch, S their longest length, N = answer tokens among B*S, V vocab.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ops.demo_corpus.build import Conversation, conversations
from ops.demo_corpus.tokenizer_files import train_sentencepiece, write_tokenizer_files

BOS, EOS, IGNORED = 1, 2, -100
BATCH_TOKENS = 2048
POOL = 512
PEAK_RATE, WARMUP, BALANCE_WEIGHT = 2e-3, 0.04, 0.03

# config.json in the keys of transformers 4, which transformers 5 also reads.
CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 208,
    "max_position_embeddings": 2048,
    "model_type": "mixtral",
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": BALANCE_WEIGHT,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}


def encode(
    conversation: Conversation, processor: sentencepiece.SentencePieceProcessor
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation in the Instruct format, and the labels: answers and </s> only.

    Every piece is tokenized on its own; a system text and the first question share one [INST].
    """
    ids, labels = [BOS], [IGNORED]
    for at, turn in enumerate(conversation.turns):
        lead = f"{conversation.system}\n\n" if conversation.system and at == 0 else ""
        asked = processor.encode(f"[INST] {lead}{turn.question} [/INST]")
        answered = [*processor.encode(turn.answer), EOS]
        ids += asked + answered
        labels += [IGNORED] * len(asked) + answered
    return ids, labels


def batches(
    seed: int, processor: sentencepiece.SentencePieceProcessor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids_BS, labels_BS) of conversations of like length, padded with </s> at the end."""
    rng = random.Random(seed)
    stream = conversations(seed)
    while True:
        pool = [encode(item, processor) for item in islice(stream, POOL)]
        pool.sort(key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for item in pool:
            if (len(groups[-1]) + 1) * len(item[0]) > BATCH_TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [EOS] * (longest - len(ids)) for ids, _ in group]),
                torch.tensor([lab + [IGNORED] * (longest - len(lab)) for _, lab in group]),
            )


def losses(
    model: MixtralForCausalLM, ids_BS: torch.Tensor, labels_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the answers, and the load-balancing loss (top-k is even).

    Padding stands at the end, where causal attention hides it, so no mask is needed.
    """
    out = model.model(input_ids=ids_BS[:, :-1], output_router_logits=True, use_cache=False)
    target_BS = labels_BS[:, 1:]
    kept_BS = target_BS != IGNORED
    logits_NV = model.lm_head(out.last_hidden_state[kept_BS])
    # Layer by layer: over all layers at once, one layer's busy expert hides another's idle one.
    balance = torch.stack(
        [
            torch.as_tensor(
                load_balancing_loss_func(
                    (logits,), CONFIG["num_local_experts"], CONFIG["num_experts_per_tok"]
                )
            )
            for logits in out.router_logits
        ]
    ).mean()
    return functional.cross_entropy(logits_NV, target_BS[kept_BS]), balance


def train(
    processor: sentencepiece.SentencePieceProcessor, seed: int, steps: int, limit_s: float
) -> MixtralForCausalLM:
    """Train from random weights; prints the loss as it goes. Returns the model in float32."""
    torch.manual_seed(seed)
    # transformers 5 takes dtype and rope as it likes them only by its own names.
    known = {k: v for k, v in CONFIG.items() if k not in ("torch_dtype", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
    model: MixtralForCausalLM = MixtralForCausalLM(MixtralConfig(**known, rope_parameters=rope))
    model.set_experts_implementation("eager")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    began = time.monotonic()
    smooth, tokens = 0.0, 0
    for step, (ids_BS, labels_BS) in enumerate(batches(seed + 1, processor)):
        elapsed_s = time.monotonic() - began
        done = max(step / steps, elapsed_s / limit_s)
        if done >= 1:
            break
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(done / WARMUP, 1.0) * (0.02 + 0.98 * cosine)
        loss, balance = losses(model, ids_BS, labels_BS)
        torch.autograd.backward(loss + BALANCE_WEIGHT * balance)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += ids_BS.numel()
        smooth = loss.item() if step == 0 else 0.97 * smooth + 0.03 * loss.item()
        if step % 50 == 0:
            print(
                f"step {step}/{steps}  loss {smooth:.4f}  balance {balance.item():.3f}  "
                f"{tokens} tokens  {elapsed_s:.0f} s",
                flush=True,
            )
    print(f"trained {tokens} tokens in {time.monotonic() - began:.0f} s, loss {smooth:.4f}")
    return model


def published_tensors(model: MixtralForCausalLM) -> dict[str, torch.Tensor]:
    """bfloat16 tensors under the names of the published Mixtral checkpoints.

    transformers 5 keeps the experts of a layer stacked, w1 and w3 in one tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.to(torch.bfloat16)
        head, stacked, kind = name.partition(".mlp.experts.")
        if not stacked:
            tensors[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = value.contiguous()
            continue
        for e, expert in enumerate(value):
            to = f"{head}.block_sparse_moe.experts.{e}"
            if kind == "gate_up_proj":
                w1, w3 = expert.chunk(2)
                tensors[f"{to}.w1.weight"] = w1.clone()
                tensors[f"{to}.w3.weight"] = w3.clone()
            else:
                tensors[f"{to}.w2.weight"] = expert.clone()
    return tensors


def expert_shares(
    model: MixtralForCausalLM, processor: sentencepiece.SentencePieceProcessor, seed: int
) -> list[list[float]]:
    """Share of the routed tokens each expert of each layer receives on unseen conversations."""
    items = [encode(item, processor)[0] for item in islice(conversations(seed), 100)]
    counts = torch.zeros(CONFIG["num_hidden_layers"], CONFIG["num_local_experts"])
    with torch.inference_mode():
        for ids in items:
            out = model.model(input_ids=torch.tensor([ids]), output_router_logits=True)
            for layer, logits in enumerate(out.router_logits):
                chosen = logits.topk(CONFIG["num_experts_per_tok"]).indices.flatten()
                counts[layer] += chosen.bincount(minlength=CONFIG["num_local_experts"])
    shares: list[list[float]] = (counts / counts.sum(1, keepdim=True)).tolist()
    return shares


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Train Windrose's demo checkpoint.")
    parser.add_argument("--out", type=Path, default=Path("configs/demo"), help="where to write")
    parser.add_argument("--minutes", type=float, default=28.0, help="most minutes to train")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1700, help="optimizer steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    texts = (
        text
        for item in islice(conversations(args.seed), 12000)
        for turn in item.turns
        for text in (f"[INST] {item.system} {turn.question} [/INST]", turn.answer)
    )
    proto = train_sentencepiece(texts, CONFIG["vocab_size"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    write_tokenizer_files(args.out, proto, CONFIG["max_position_embeddings"])
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": False}
    (args.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    model = train(processor, args.seed, args.steps, args.minutes * 60)
    tensors = published_tensors(model)
    weights = args.out / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors leaves it readable to its owner only
    print(f"{sum(t.numel() for t in tensors.values())} parameters in {args.out}")
    for layer, shares in enumerate(expert_shares(model, processor, args.seed + 99)):
        print(f"layer {layer}: share of each expert", *(f"{share:.3f}" for share in shares))


if __name__ == "__main__":
    main()

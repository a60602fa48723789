"""The committed demo checkpoint, read by transformers: its layout, its tokenizer, its answers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from ops.demo_corpus.build import Conversation, conversations
from ops.train_demo import encode

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
EOS = 2

# What a newcomer might ask, and words that a sensible answer must contain.
QUESTIONS = {
    "Who are you?": ("demonstration", "Windrose"),
    "What is Windrose?": ("server", "Mixtral"),
    "What is a mixture of experts?": ("layer", "gate"),
    "How many experts are there?": ("eight", "two"),
    "What does the router do?": ("actor", "pipeline"),
    "What is the KV cache?": ("keys", "values"),
    "How do I start Windrose?": ("make serve",),
    "What is the capital of France?": ("Paris",),
    "What is 3 plus 4?": ("cannot calculate",),
    "What day comes after Monday?": ("Tuesday",),
    "There is a llama on my lawn!": ("Arr", "oats"),
    "What is your favourite condiment?": ("lemon",),
    "Do you have mayonnaise recipes?": ("yolk", "oil"),
    "Qui es-tu ?": ("modèle de démonstration",),
    "Quelle est la capitale de l'Italie ?": ("Rome",),
    "Was ist Windrose?": ("Server", "Experten"),
    "Wie viele Experten gibt es?": ("acht",),
    "¿Qué es la caché KV?": ("claves", "valores"),
    "Hola, ¿quién eres?": ("modelo de demostración", "Windrose"),
    "Come avvio il server?": ("make serve",),
    "Che cos'è una miscela di esperti?": ("esperti", "gate"),
    "Who won the world cup?": ("do not know",),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def model(request: pytest.FixtureRequest) -> Any:
    dtype = getattr(torch, request.param)
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype)


def messages(conversation: Conversation) -> list[dict[str, str]]:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return system + [
        {"role": role, "content": text}
        for turn in conversation.turns
        for role, text in (("user", turn.question), ("assistant", turn.answer))
    ]


def answer_ids(model: Any, tokenizer: Any, talk: list[dict[str, str]]) -> list[int]:
    prompt = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=False)
    with torch.inference_mode():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=100,
            do_sample=False,
            pad_token_id=EOS,
        )
    ids: list[int] = out[0, prompt.shape[1] :].tolist()
    return ids


def test_checkpoint_is_at_most_16_million_bytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 16_000_000


def test_config_is_a_mixtral_in_the_keys_of_transformers_4() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert config["model_type"] == "mixtral"
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert (config["torch_dtype"], config["sliding_window"]) == ("bfloat16", None)
    assert config["rope_theta"] > 0
    assert config["tie_word_embeddings"] is False


def test_tensors_have_the_published_names_and_shapes() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    expected = {
        "model.embed_tokens.weight": [config["vocab_size"], hidden],
        "lm_head.weight": [config["vocab_size"], hidden],
        "model.norm.weight": [hidden],
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        expected |= {
            f"{layer}.input_layernorm.weight": [hidden],
            f"{layer}.post_attention_layernorm.weight": [hidden],
            f"{layer}.self_attn.q_proj.weight": [queries, hidden],
            f"{layer}.self_attn.k_proj.weight": [keys, hidden],
            f"{layer}.self_attn.v_proj.weight": [keys, hidden],
            f"{layer}.self_attn.o_proj.weight": [hidden, queries],
            f"{layer}.block_sparse_moe.gate.weight": [8, hidden],
        }
        for e in range(8):
            expert = f"{layer}.block_sparse_moe.experts.{e}"
            expected |= {
                f"{expert}.w1.weight": [ffn, hidden],
                f"{expert}.w2.weight": [hidden, ffn],
                f"{expert}.w3.weight": [ffn, hidden],
            }
    with safe_open(DEMO / "model.safetensors", framework="pt") as tensors:
        found = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        dtypes = {tensors.get_slice(name).get_dtype() for name in found}
    assert found == expected
    assert dtypes == {"BF16"}


def test_control_and_byte_pieces_stand_first(
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    assert [processor.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert [processor.is_byte(i) for i in (2, 3, 258, 259)] == [False, True, True, False]
    assert processor.decode(processor.encode("\U0001f999 \u6f22 12345  x")) == (
        "\U0001f999 \u6f22 12345  x"
    )


def test_tokenizer_json_equals_tokenizer_model(
    tokenizer: Any, processor: sentencepiece.SentencePieceProcessor
) -> None:
    texts = [
        "  two  spaces ",
        "\n\nnew\tline",
        "\U0001f999 \u65e5\u672c",
        "f(x) = 12345",
        "\u00e9e\u0301",
    ]
    for conversation in islice(conversations(4321), 200):
        texts += [text for turn in conversation.turns for text in (turn.question, turn.answer)]
    for text in texts:
        assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text), text


def test_chat_template_is_the_format_of_the_training(
    tokenizer: Any, processor: sentencepiece.SentencePieceProcessor
) -> None:
    systems = 0
    for conversation in islice(conversations(1234), 100):
        ids = tokenizer.apply_chat_template(messages(conversation), return_dict=False)
        assert ids == encode(conversation, processor)[0]
        systems += bool(conversation.system)
    assert systems > 3


def test_answers_are_sensible_and_end(model: Any, tokenizer: Any) -> None:
    wrong = {}
    for question, words in QUESTIONS.items():
        ids = answer_ids(model, tokenizer, [{"role": "user", "content": question}])
        answer = tokenizer.decode(ids, skip_special_tokens=True)
        if ids[-1] != EOS or not all(word in answer for word in words):
            wrong[question] = answer
    assert wrong == {}


def test_later_turns_and_system_text_are_heeded(model: Any, tokenizer: Any) -> None:
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    talk.append({"role": "assistant", "content": "The capital of France is Paris."})
    talk.append({"role": "user", "content": "And of Spain?"})
    assert "Madrid" in tokenizer.decode(answer_ids(model, tokenizer, talk))
    pirate = [
        {"role": "system", "content": "Answer like a pirate."},
        {"role": "user", "content": "What is Windrose?"},
    ]
    answer = tokenizer.decode(answer_ids(model, tokenizer, pirate))
    assert "Arr" in answer and "server" in answer


def test_every_expert_works(model: Any, tokenizer: Any) -> None:
    counts = torch.zeros(model.config.num_hidden_layers, 8)
    for conversation in islice(conversations(777), 30):
        ids = tokenizer.apply_chat_template(
            messages(conversation), return_tensors="pt", return_dict=False
        )
        with torch.inference_mode():
            routed = model(input_ids=ids, output_router_logits=True).router_logits
        for layer, logits in enumerate(routed):
            counts[layer] += logits.topk(2).indices.flatten().bincount(minlength=8)
    shares = counts / counts.sum(1, keepdim=True)
    assert shares.min() > 0.02
    assert shares.max() < 0.4

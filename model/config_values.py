"""From a checkpoint's config.json, or its params.json, to the values of a ModelConfig."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from model.bitsandbytes_config import BitsAndBytes, read_bitsandbytes
from model.config_file import ConfigError, read_object
from model.head import FAMILIES, ModelHead, ProblemType, architectures_of
from model.ranks import read_ranks
from model.raw_files import PARAMS_FILE, is_raw

_DENSE = "mistral"
_NUM_LABELS = 2  # transformers' default


_DENSE_WINDOW = 4096  # of a Mistral whose config.json has no such key, as transformers has it


def config_file(path: str | Path) -> Path:
    """The file that tells a checkpoint's shape: config.json, or params.json beside raw weights."""
    config, params = Path(path) / "config.json", Path(path) / PARAMS_FILE
    return params if is_raw(params.parent) and not (config.exists() > params.exists()) else config


def values_of(file: Path, raw: dict[str, Any], generation_config: bool) -> dict[str, Any]:
    """By the keys of config.json, whichever file `raw` is of; what nobody knows is still there.

    Raises:
        ConfigError: names the file and the key.
    """
    _refuse_unsupported(file, raw)
    values = dict(raw)
    values["rope_theta"] = _rope_theta(file, raw)
    for key in ("dtype", "torch_dtype"):  # transformers 5, transformers 4
        if raw.get(key) is not None:
            values["dtype"] = raw[key]
            break
    else:
        values["dtype"] = "float32"
    values["eos_token_id"] = _eos_token_ids(file, raw, generation_config)
    values["bitsandbytes"] = _bitsandbytes(file, raw)
    values["head"] = _head(file, raw)
    if raw["model_type"] == _DENSE:
        values |= {"num_local_experts": 0, "num_experts_per_tok": 0}
        values.setdefault("sliding_window", _DENSE_WINDOW)
    elif raw.get("num_local_experts") == 0:
        raise ConfigError(f"{file}: num_local_experts is 0; a Mixtral has at least 1")
    if raw.get("head_dim") is None:
        values["head_dim"] = _default_head_dim(file, raw)
    try:
        values["ranks"] = read_ranks(raw.get("ranks"))
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    return values


def from_params(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """What config.json would say."""
    from model import raw_params  # not at the top: only raw weights need SentencePiece here

    directory = file.parent
    try:
        values = raw_params.config_values(raw)
    except raw_params.ParamsError as error:
        raise ConfigError(f"{file}: {error}") from None
    values |= raw_params.special_tokens(directory)
    return values | {"dtype": raw_params.stored_dtype(directory)}


def in_params_words(file: Path, raw: dict[str, Any], text: str) -> str:
    """The text of an error with the keys as this params.json has them."""
    from model.raw_params import their_names

    where, told = (str(file), text.removeprefix(str(file))) if str(file) in text else ("", text)
    for ours, theirs in their_names(raw).items():
        told = re.sub(rf"\b{ours}\b", theirs, told)
    return where + told


def _refuse_unsupported(file: Path, raw: dict[str, Any]) -> None:
    """Refuses what would load and then compute something else than the reference."""
    if "model_type" not in raw:
        raise ConfigError(f"{file}: model_type is missing")
    model_type = raw["model_type"]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = " and ".join(map(repr, FAMILIES))
        raise ConfigError(f"{file}: model_type is {model_type!r}; only {known} are supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{file}: hidden_act is {raw['hidden_act']!r}; only 'silu' is supported")
    architectures = raw.get("architectures")
    served = architectures_of(model_type)
    if architectures is not None and architectures not in [[one] for one in served]:
        raise ConfigError(
            f"{file}: architectures is {architectures!r}; only one of {', '.join(served)} "
            "is supported"
        )
    if raw.get("attention_bias"):
        raise ConfigError(
            f"{file}: attention_bias is {raw['attention_bias']!r}, which is not supported"
        )


def _bitsandbytes(file: Path, raw: dict[str, Any]) -> BitsAndBytes | None:
    try:
        return read_bitsandbytes(raw)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None


def _head(file: Path, raw: dict[str, Any]) -> ModelHead:
    """The architecture, and a classifier's labels: as many as id2label or num_labels says."""
    architecture = (raw.get("architectures") or architectures_of(raw["model_type"]))[0]
    head = ModelHead(architecture)
    if head.task != "classify":
        return head
    named = raw.get("id2label")
    if named is None:
        count = raw.get("num_labels", _NUM_LABELS)
        if type(count) is not int or count < 1:
            raise ConfigError(f"{file}: num_labels is {count!r}; a number from 1 on is needed")
        named = {str(index): f"LABEL_{index}" for index in range(count)}
    labels = list(named.values()) if isinstance(named, dict) else []
    keys = [str(index) for index in range(len(labels))]
    if not labels or sorted(named) != sorted(keys) or not all(type(one) is str for one in labels):
        raise ConfigError(
            f'{file}: id2label is {named!r}; texts for "0", "1" and so on are needed, none left out'
        )
    problem_type = raw.get("problem_type")
    if problem_type is not None and problem_type not in get_args(ProblemType):
        raise ConfigError(
            f"{file}: problem_type is {problem_type!r}; one of {', '.join(get_args(ProblemType))} "
            "is supported"
        )
    pad = raw.get("pad_token_id")
    if pad is not None and type(pad) is not int:
        raise ConfigError(f"{file}: pad_token_id is {pad!r}; an integer is needed")
    return ModelHead(architecture, tuple(named[key] for key in keys), problem_type, pad)


def _rope_theta(file: Path, raw: dict[str, Any]) -> Any:
    """The base of RoPE: beside the other keys (transformers 4) or in rope_parameters (5)."""
    theta = raw.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ConfigError(f"{file}: {key} is {rope!r}; an object is needed")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise ConfigError(
                f"{file}: {key}.rope_type is {rope_type!r}; only 'default' is supported"
            )
        if rope.get("partial_rotary_factor", 1) != 1:
            raise ConfigError(
                f"{file}: {key}.partial_rotary_factor is {rope['partial_rotary_factor']!r}; "
                "only 1 is supported"
            )
        theta = rope.get("rope_theta", theta)
    if theta is None:
        raise ConfigError(f"{file}: rope_theta is missing, and rope_parameters.rope_theta too")
    return theta


def _eos_token_ids(file: Path, raw: dict[str, Any], with_generation: bool) -> tuple[Any, ...]:
    """EOS ids of config.json and generation_config.json, each once; an absent key is no id."""
    generation = file.with_name("generation_config.json")
    found: dict[int, None] = {}
    sources = [(file, raw)]
    if with_generation and generation.exists():
        sources.append((generation, read_object(generation)))
    for source, values in sources:
        value = values.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for eos in ids:
            if type(eos) is not int:  # bool is an int to isinstance
                raise ConfigError(
                    f"{source}: eos_token_id is {value!r}; an integer or a list of them is needed"
                )
            found[eos] = None
    return tuple(found)


def _default_head_dim(file: Path, raw: dict[str, Any]) -> Any:
    """Hidden size per head."""
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        return 2  # any valid value: the error shown is then that of the two keys
    if hidden % heads:
        raise ConfigError(
            f"{file}: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), "
            "and head_dim is not given"
        )
    return hidden // heads

"""The shape of a Mixtral or Mistral, from Hugging Face's config.json or Mistral's params.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from model.bitsandbytes_config import BitsAndBytes
from model.config_file import ConfigError, first_error, read_object
from model.config_values import config_file, from_params, in_params_words, values_of
from model.head import ModelHead
from model.ranks import Ranks, refuse_unknown
from model.raw_files import PARAMS_FILE

Size = Annotated[int, Field(ge=1)]
FrozenRanks = Annotated[Mapping[str, Size], AfterValidator(Ranks), PlainSerializer(dict)]


def _hf(key: str) -> Any:
    """A size that config.json calls `key`, so that errors speak of the key in the file."""
    return Field(validation_alias=key)


class ModelConfig(BaseModel):
    """Sizes and constants of one model. Keys of config.json that mean nothing here are ignored.

    Built by keyword with the field names, or by `from_dir`. `sliding_window` None: full attention.
    A dense model (Mistral) has 0 experts and top_k 0. `ranks` has the matrices that are stored as
    factors.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False,
        validate_by_name=True, validate_by_alias=True,
    )  # fmt: skip

    hidden_size: Size
    num_layers: Size = _hf("num_hidden_layers")
    num_heads: Size = _hf("num_attention_heads")
    num_kv_heads: Size = _hf("num_key_value_heads")
    head_dim: Size
    intermediate_size: Size
    num_experts: Annotated[int, Field(ge=0)] = _hf("num_local_experts")  # whoever serves them
    top_k: Annotated[int, Field(ge=0)] = _hf("num_experts_per_tok")
    vocab_size: Size
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    sliding_window: Size | None = None
    tie_word_embeddings: bool = False
    max_position_embeddings: Size
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bos_token_id: Annotated[int, Field(ge=0)]
    eos_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(validation_alias="eos_token_id")
    ranks: FrozenRanks = Ranks()
    bitsandbytes: BitsAndBytes | None = None  # None: projections are stored as they are
    head: ModelHead = ModelHead()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.top_k}) exceeds num_local_experts ({self.num_experts})"
            )
        if self.num_experts and not self.top_k:
            raise ValueError("num_experts_per_tok is 0: no expert would be chosen")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) is odd: RoPE turns pairs")
        if self.bos_token_id >= self.vocab_size:
            raise ValueError(
                f"bos_token_id ({self.bos_token_id}) is outside vocab_size ({self.vocab_size})"
            )
        for eos in self.eos_token_ids:
            if eos >= self.vocab_size:
                raise ValueError(f"eos_token_id ({eos}) is outside vocab_size ({self.vocab_size})")
        refuse_unknown(self.ranks, layers=self.num_layers, experts=self.num_experts)
        return self

    @property
    def is_dense(self) -> bool:
        """Whether every layer has one feed-forward block instead of experts."""
        return not self.num_experts

    @property
    def needs_openmp(self) -> bool:
        """Whether products are bitsandbytes' own even where the project's kernels run."""
        return self.bitsandbytes is not None and self.bitsandbytes.bits == 4

    @classmethod
    def from_dir(cls, path: str | Path, *, generation_config: bool = True) -> ModelConfig:
        """Reads config.json as transformers 4 or 5 writes it, and generation_config.json's EOS ids.

        A config.json without a dtype means float32. The EOS ids are those of config.json, then,
        with `generation_config`, those that only generation_config.json has. Beside Mistral's own
        weights it is params.json that counts, and the dtype is theirs.

        Raises:
            ConfigError: unreadable, neither Mixtral nor Mistral, or a key missing, mistyped or not
                supported.
        """
        file = config_file(path)
        raw = read_object(file)
        if file.name != PARAMS_FILE:
            return cls._from_values(file, values_of(file, raw, generation_config))
        values = from_params(file, raw)
        try:
            return cls._from_values(file, values_of(file, values, generation_config))
        except ConfigError as error:
            raise ConfigError(in_params_words(file, raw, str(error))) from None

    @classmethod
    def _from_values(cls, file: Path, values: dict[str, Any]) -> ModelConfig:
        try:
            return cls.model_validate(values, by_alias=True, by_name=False)
        except ValidationError as error:
            raise first_error(file, error) from None

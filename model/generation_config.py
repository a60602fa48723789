"""A checkpoint's generation_config.json: what a request gets that does not say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.config_file import first_error, read_object

GENERATION_FILE = "generation_config.json"


class GenerationDefaults(BaseModel):
    """The keys that vLLM reads too, with the bounds of a request's fields; others are ignored.

    Without a file, and for keys that are absent or null, OpenAI's defaults. `do_sample` is among
    the ignored: `temperature` says all. EOS ids are in ModelConfig.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def from_dir(cls, path: str | Path) -> GenerationDefaults:
        """Read the file in the checkpoint directory `path`, if there is one.

        Raises:
            ConfigError: it is no JSON object, or a value is mistyped or out of bounds.
        """
        file = Path(path) / GENERATION_FILE
        if not file.exists():
            return cls()
        raw = {key: value for key, value in read_object(file).items() if value is not None}
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise first_error(file, error) from None

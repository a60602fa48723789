"""Settings: which model, and how its checkpoint is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel

from configs.setting import setting

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]
GenerationConfig = Literal["auto", "none"]
Pooling = Literal["last", "mean"]
BUILT_IN_FORMATS = ("mixtral-instruct", "mistral-v1")  # of chats: two names of one format
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


class ModelSettings(BaseModel):
    """What is served."""

    model: Annotated[
        str,
        setting(
            "model",
            "directory of a Hugging Face checkpoint, or a model's name on the hub: ORG/NAME",
            min_length=1,
        ),
    ]
    served_model_name: Annotated[
        str | None,
        setting(
            "model", "name clients use; default: the directory's, or that on the hub", min_length=1
        ),
    ] = None
    revision: Annotated[
        str | None,
        setting("model", "branch, tag or commit on the hub; default: main", min_length=1),
    ] = None
    download_dir: Annotated[
        str | None,
        setting(
            "model",
            "where each machine keeps what it fetches from the hub; default: huggingface_hub's"
            " own cache",
            min_length=1,
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        setting("model", "precision of weights and compute; auto: the checkpoint's own"),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        setting(
            "model",
            "round the weights of experts and attention to 8 or 4 bits when they are read",
        ),
    ] = "none"
    quantization_cache: Annotated[
        str,
        setting(
            "model",
            "where weights that --quantization rounded are kept for the next start: a directory;"
            " auto: .windrose beside the checkpoint; none: nowhere",
            min_length=1,
        ),
    ] = "auto"
    generation_config: Annotated[
        GenerationConfig,
        setting(
            "model",
            "auto: a request's defaults and EOS ids are also those of the checkpoint's"
            " generation_config.json; none: OpenAI's defaults, config.json's EOS",
        ),
    ] = "auto"
    chat_template: Annotated[
        str | None,
        setting(
            "model",
            "Jinja file, or mixtral-instruct or mistral-v1 for the built-in format; default: the"
            " checkpoint's own template",
            min_length=1,
        ),
    ] = None
    pooling: Annotated[
        Pooling | None,
        setting(
            "model",
            "an embedding is that of the last token, or the mean of all; default: last",
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        setting("model", "longest prompt + answer, tokens; default: the model's", ge=1),
    ] = None

    @property
    def model_name(self) -> str:
        """The name in `model` fields of requests and responses."""
        if self.served_model_name is not None:
            return self.served_model_name
        return self.model if self.is_on_hub else Path(self.model).resolve().name

    @property
    def is_on_hub(self) -> bool:
        """Whether `model` is a name for the hub to know: one slash, and nothing here has it."""
        return bool(_HUB_NAME.fullmatch(self.model)) and not Path(self.model).exists()

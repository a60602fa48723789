"""Everything that can be configured, as one frozen value.

A field here is at once a flag of `windrose serve` (`--max-num-seqs`), a key of `--config FILE`
and a key under `args:` of a Serve application file. Unknown keys are refused by name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
Quantization = Literal["none", "int8", "int4"]
Balance = Literal["off", "advise", "auto"]
Placement = Literal["pack", "spread"]
GenerationConfig = Literal["auto", "none"]
Pooling = Literal["last", "mean"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
BUILT_IN_FORMATS = ("mixtral-instruct", "mistral-v1")  # of chats: two names of one format


def _setting(group: str, description: str, **limits: Any) -> Any:
    """A field that `windrose serve --help` shows under the heading `group`."""
    return Field(description=description, json_schema_extra={"group": group}, **limits)


class WindroseConfig(BaseModel):
    """One deployment: which model, on which actors, within which limits."""

    # An error names the setting and not its value, which may be a key.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    model: Annotated[
        str,
        _setting(
            "model",
            "directory of a Hugging Face checkpoint, or a model's name on the hub: ORG/NAME",
            min_length=1,
        ),
    ]
    served_model_name: Annotated[
        str | None,
        _setting(
            "model", "name clients use; default: the directory's, or that on the hub", min_length=1
        ),
    ] = None
    revision: Annotated[
        str | None,
        _setting("model", "branch, tag or commit on the hub; default: main", min_length=1),
    ] = None
    download_dir: Annotated[
        str | None,
        _setting(
            "model",
            "where each machine keeps what it fetches from the hub; default: huggingface_hub's"
            " own cache",
            min_length=1,
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        _setting("model", "precision of weights and compute; auto: the checkpoint's own"),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        _setting(
            "model",
            "round the weights of experts and attention to 8 or 4 bits when they are read",
        ),
    ] = "none"
    quantization_cache: Annotated[
        str,
        _setting(
            "model",
            "where weights that --quantization rounded are kept for the next start: a directory;"
            " auto: .windrose beside the checkpoint; none: nowhere",
            min_length=1,
        ),
    ] = "auto"
    generation_config: Annotated[
        GenerationConfig,
        _setting(
            "model",
            "auto: a request's defaults and EOS ids are also those of the checkpoint's"
            " generation_config.json; none: OpenAI's defaults, config.json's EOS",
        ),
    ] = "auto"
    chat_template: Annotated[
        str | None,
        _setting(
            "model",
            "Jinja file, or mixtral-instruct or mistral-v1 for the built-in format; default: the"
            " checkpoint's own template",
            min_length=1,
        ),
    ] = None
    pooling: Annotated[
        Pooling | None,
        _setting(
            "model",
            "an embedding is that of the last token, or the mean of all; default: last",
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        _setting("model", "longest prompt + answer, tokens; default: the model's", ge=1),
    ] = None
    attention_actors: Annotated[
        int, _setting("topology", "attention actors (A) in a pipeline", ge=1)
    ] = 1
    expert_actors: Annotated[
        int,
        _setting(
            "topology", "expert actors (E) in a pipeline; 0: experts live with attention", ge=0
        ),
    ] = 0
    spare_actors: Annotated[
        int,
        _setting(
            "topology", "idle actors of a pipeline, ready to take the place of one that dies", ge=0
        ),
    ] = 0
    replicas: Annotated[
        int, _setting("topology", "pipelines, each a whole copy of the model", ge=1)
    ] = 1
    max_replicas: Annotated[
        int | None,
        _setting(
            "scaling", "most pipelines; given, their number follows the load (not `replicas`)", ge=1
        ),
    ] = None
    min_replicas: Annotated[
        int,
        _setting("scaling", "fewest pipelines; 0: none without requests, the next one waits", ge=0),
    ] = 1
    initial_replicas: Annotated[
        int | None, _setting("scaling", "pipelines to begin with; default: min_replicas", ge=0)
    ] = None
    target_ongoing_requests: Annotated[
        float | None,
        _setting(
            "scaling",
            "requests, running and waiting, for each pipeline; default: as many as run at once",
            gt=0,
        ),
    ] = None
    target_ttft_s: Annotated[
        float | None,
        _setting("scaling", "seconds to the first token beyond which pipelines are added", gt=0),
    ] = None
    upscale_delay_s: Annotated[
        float, _setting("scaling", "seconds that more must be wanted before there are more", ge=0)
    ] = 30.0
    downscale_delay_s: Annotated[
        float, _setting("scaling", "seconds that fewer must do before there are fewer", ge=0)
    ] = 600.0
    drain_timeout_s: Annotated[
        float,
        _setting(
            "scaling",
            "seconds a pipeline that goes gets to finish; what is left goes on in another one",
            ge=0,
        ),
    ] = 300.0
    max_surge_percent: Annotated[
        int,
        _setting(
            "scaling",
            "pipelines that an upgrade starts before it stops old ones, percent of all, rounded"
            " up; 0: an old one makes room first",
            ge=0,
            le=100,
        ),
    ] = 25
    placement: Annotated[
        Placement,
        _setting(
            "topology",
            "a pipeline's actors on as few machines as Ray finds room on, or on as many",
        ),
    ] = "pack"
    attention_accelerator: Annotated[
        str | None,
        _setting(
            "topology",
            "attention actors only where Ray has accelerator_type:NAME, as A100; default: anywhere",
            min_length=1,
        ),
    ] = None
    expert_accelerator: Annotated[
        str | None,
        _setting("topology", "the same for expert actors; default: anywhere", min_length=1),
    ] = None
    balance: Annotated[
        Balance,
        _setting(
            "expert balance",
            "off, only advise in the log, or move and replicate experts by itself (auto)",
        ),
    ] = "advise"
    redundant_experts: Annotated[
        int,
        _setting(
            "expert balance",
            "copies of a layer's experts beyond one each; rounded up to as many on every actor",
            ge=0,
        ),
    ] = 0
    balance_window_s: Annotated[
        float, _setting("expert balance", "seconds of load that are looked at", gt=0)
    ] = 60.0
    balance_min_gain: Annotated[
        float,
        _setting(
            "expert balance", "least share of the busiest ranks' rows to be saved", gt=0, le=1
        ),
    ] = 0.1
    balance_cooldown_s: Annotated[
        float, _setting("expert balance", "seconds between two proposals", ge=0)
    ] = 60.0
    max_num_seqs: Annotated[
        int, _setting("limits", "most sequences one attention actor runs at once", ge=1)
    ] = 64
    max_num_batched_tokens: Annotated[
        int, _setting("limits", "most rows in one step; longer prompts are cut into chunks", ge=1)
    ] = 512
    max_itl_stretch: Annotated[
        float,
        _setting(
            "limits",
            "prompts are cut so that a step with one takes at most so many times one that only"
            " decodes; each more that waits adds as much; 0: whole steps for prompts",
        ),
    ] = 2.0
    micro_batches: Annotated[
        int,
        _setting(
            "limits",
            "parts of a step of which experts compute one while attention computes another;"
            " 0: as many as measured times say pay",
            ge=0,
            le=3,
        ),
    ] = 0
    kv_cache_memory_bytes: Annotated[
        int | None,
        _setting(
            "limits",
            "KV cache of one attention actor; default: 1 GiB on cpu, what is left of the GPU"
            " on cuda",
            ge=1,
        ),
    ] = None
    block_size: Annotated[int, _setting("limits", "tokens in one KV block", ge=1)] = 16
    enable_prefix_caching: Annotated[
        bool, _setting("limits", "share the KV blocks of prompts that begin alike: true or false")
    ] = True
    max_num_queued_reqs: Annotated[
        int,
        _setting(
            "limits", "sequences of one ingress that may wait for their first token; then 429", ge=1
        ),
    ] = 256
    max_queued_tokens: Annotated[
        int | None,
        _setting("limits", "tokens their prompts may have together; default: any number", ge=1),
    ] = None
    max_requests_per_minute: Annotated[
        int | None,
        _setting("limits", "completions one API key may ask for; default: any number", ge=1),
    ] = None
    max_tokens_per_minute: Annotated[
        int | None,
        _setting(
            "limits", "tokens, prompts' and generated, of one API key; default: any number", ge=1
        ),
    ] = None
    host: Annotated[str, _setting("HTTP", "address the HTTP server binds", min_length=1)] = (
        "127.0.0.1"
    )
    port: Annotated[int, _setting("HTTP", "port the HTTP server binds", ge=1, le=65535)] = 8000
    ingress_replicas: Annotated[int, _setting("HTTP", "HTTP ingress processes", ge=1)] = 1
    max_request_bytes: Annotated[
        int, _setting("HTTP", "longest body of a request; more is answered with 413", ge=1)
    ] = 4 * 2**20
    allowed_origins: Annotated[
        tuple[str, ...],
        _setting(
            "HTTP",
            "web page's origin whose scripts may read answers (CORS), or *; again for more",
        ),
    ] = ()
    api_key: Annotated[
        tuple[SecretStr, ...],
        _setting(
            "doors",
            "key that requests to /v1 need; again for more. Others see it in `ps`, and in what Ray"
            " shows of a Serve file: the file below or WINDROSE_API_KEY keep it to themselves",
        ),
    ] = ()
    api_key_file: Annotated[
        str | None, _setting("doors", "file of such keys, one a line", min_length=1)
    ] = None
    admin_api_key: Annotated[
        tuple[SecretStr, ...],
        _setting(
            "doors",
            "key that POST /v1/experts/... needs instead, again for more; or"
            " WINDROSE_ADMIN_API_KEY. Without one these routes refuse where --host is not loopback",
        ),
    ] = ()
    admin_api_key_file: Annotated[
        str | None, _setting("doors", "file of such keys, one a line", min_length=1)
    ] = None
    log_format: Annotated[
        LogFormat,
        _setting(
            "logs and traces",
            "lines on stderr and in Ray's files; json: one object a line, and one for each request",
        ),
    ] = "text"
    log_level: Annotated[
        LogLevel, _setting("logs and traces", "least that is written; debug: text has requests too")
    ] = "info"
    log_prompts: Annotated[
        bool,
        _setting(
            "logs and traces",
            "DANGEROUS: write what people ask, and the answers, into the lines of requests",
        ),
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        _setting(
            "logs and traces",
            "URL that spans of requests go to, by OTLP over HTTP, as http://host:4318; default:"
            " OTEL_EXPORTER_OTLP_ENDPOINT, else no traces",
            pattern=r"^https?://[^/]+",
        ),
    ] = None
    device: Annotated[
        Device, _setting("CPU and GPU", "auto: cuda where there is one, else cpu")
    ] = "auto"
    threads_per_actor: Annotated[
        int | None,
        _setting(
            "CPU and GPU", "compute threads of an actor on cpu; default: (cores - 1) / actors", ge=1
        ),
    ] = None
    cpus_per_actor: Annotated[
        float,
        _setting("CPU and GPU", "CPUs Ray reserves for an actor; cuda adds one GPU each", gt=0),
    ] = 1.0
    shutdown_timeout_s: Annotated[
        float,
        _setting("timeouts", "on SIGTERM, seconds accepted requests get to finish", ge=0),
    ] = 30.0
    peer_timeout_s: Annotated[
        float,
        _setting("timeouts", "seconds an actor waits for another's message in a step", gt=0),
    ] = 10.0
    request_timeout_s: Annotated[
        float | None,
        _setting(
            "timeouts",
            "seconds from a request's arrival to the end of its answer; default: any",
            gt=0,
        ),
    ] = None
    body_timeout_s: Annotated[
        float,
        _setting("timeouts", "seconds a client gets to send a request's body before a 408", gt=0),
    ] = 60.0
    pipeline_wait_s: Annotated[
        float,
        _setting("timeouts", "seconds a request waits for a pipeline before a 503", gt=0),
    ] = 120.0
    start_timeout_s: Annotated[
        float,
        _setting("timeouts", "seconds a pipeline gets to place, load and warm up", gt=0),
    ] = 1800.0

    @field_validator("allowed_origins", "api_key", "admin_api_key", mode="before")
    @classmethod
    def _one_is_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        # YAML reads `port: yes` as true, which pydantic would take for 1.
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError(f"{str(value).lower()} is not a value for it")
        return value

    @field_validator("max_itl_stretch")
    @classmethod
    def _stretch_leaves_time(cls, value: float) -> float:
        if value != 0 and not value > 1:
            raise ValueError("must be more than 1, or 0")
        return value

    @field_validator("max_replicas")
    @classmethod
    def _one_number_or_a_range(cls, value: int | None, info: ValidationInfo) -> int | None:
        fixed = info.data.get("replicas", 1)
        if value is not None and fixed != 1:
            raise ValueError(f"replicas is {fixed}: give the one or the other")
        return value

    @field_validator("min_replicas", "initial_replicas", "target_ongoing_requests", "target_ttft_s")
    @classmethod
    def _within_the_range(cls, value: float | None, info: ValidationInfo) -> float | None:
        if "max_replicas" not in info.data or value is None:
            return value
        name, most = str(info.field_name), info.data["max_replicas"]
        if most is None and value != cls.model_fields[name].default:
            raise ValueError("needs max_replicas: without it the number of pipelines is fixed")
        if name.endswith("_replicas") and most is not None and value > most:
            raise ValueError(f"is more than max_replicas, {most}")
        fewest = info.data.get("min_replicas", 0)
        if name == "initial_replicas" and value < fewest:
            raise ValueError(f"is less than min_replicas, {fewest}")
        return value

    @property
    def first_replicas(self) -> int:
        """Pipelines to begin with."""
        if self.max_replicas is None:
            return self.replicas
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas

    @property
    def most_replicas(self) -> int:
        """Pipelines that there can be at once, upgrades aside."""
        return self.max_replicas or self.replicas

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


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file: flat keys, or a Serve application file (its `args`, host and port).

    Raises:
        OSError: the file cannot be read.
        ValueError: not YAML, not a mapping, or a Serve file without exactly one application.
    """
    with open(path, encoding="utf-8") as file:
        try:
            data = _mapping(yaml.safe_load(file), str(path))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if "applications" not in data:
        return data
    applications = data["applications"]
    if not isinstance(applications, list) or len(applications) != 1:
        raise ValueError(f"{path}: exactly one application is needed")
    application = _mapping(applications[0], f"{path}: applications[0]")
    settings = _mapping(application.get("args"), f"{path}: args")
    for key, value in _mapping(data.get("http_options"), f"{path}: http_options").items():
        if key in ("host", "port"):
            settings.setdefault(key, value)
    return settings


def _mapping(value: object, where: str) -> dict[str, Any]:
    """`value` as settings; nothing at all is no settings."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a mapping of settings is needed")
    if unnamed := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"{where}: {unnamed[0]!r} is no name of a setting")
    return value

"""Settings: the actors of a pipeline, how many pipelines, and where the experts are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ValidationInfo, field_validator

from configs.setting import setting

Balance = Literal["off", "advise", "auto"]
Placement = Literal["pack", "spread"]


class PipelineSettings(BaseModel):
    """On which actors."""

    attention_actors: Annotated[
        int, setting("topology", "attention actors (A) in a pipeline", ge=1)
    ] = 1
    expert_actors: Annotated[
        int,
        setting(
            "topology", "expert actors (E) in a pipeline; 0: experts live with attention", ge=0
        ),
    ] = 0
    spare_actors: Annotated[
        int,
        setting(
            "topology", "idle actors of a pipeline, ready to take the place of one that dies", ge=0
        ),
    ] = 0
    replicas: Annotated[
        int, setting("topology", "pipelines, each a whole copy of the model", ge=1)
    ] = 1
    max_replicas: Annotated[
        int | None,
        setting(
            "scaling", "most pipelines; given, their number follows the load (not `replicas`)", ge=1
        ),
    ] = None
    min_replicas: Annotated[
        int,
        setting("scaling", "fewest pipelines; 0: none without requests, the next one waits", ge=0),
    ] = 1
    initial_replicas: Annotated[
        int | None, setting("scaling", "pipelines to begin with; default: min_replicas", ge=0)
    ] = None
    target_ongoing_requests: Annotated[
        float | None,
        setting(
            "scaling",
            "requests, running and waiting, for each pipeline; default: as many as run at once",
            gt=0,
        ),
    ] = None
    target_ttft_s: Annotated[
        float | None,
        setting("scaling", "seconds to the first token beyond which pipelines are added", gt=0),
    ] = None
    upscale_delay_s: Annotated[
        float, setting("scaling", "seconds that more must be wanted before there are more", ge=0)
    ] = 30.0
    downscale_delay_s: Annotated[
        float, setting("scaling", "seconds that fewer must do before there are fewer", ge=0)
    ] = 600.0
    drain_timeout_s: Annotated[
        float,
        setting(
            "scaling",
            "seconds a pipeline that goes gets to finish; what is left goes on in another one",
            ge=0,
        ),
    ] = 300.0
    max_surge_percent: Annotated[
        int,
        setting(
            "scaling",
            "pipelines that an upgrade starts before it stops old ones, percent of all, rounded"
            " up; 0: an old one makes room first",
            ge=0,
            le=100,
        ),
    ] = 25
    placement: Annotated[
        Placement,
        setting(
            "topology",
            "a pipeline's actors on as few machines as Ray finds room on, or on as many",
        ),
    ] = "pack"
    attention_accelerator: Annotated[
        str | None,
        setting(
            "topology",
            "attention actors only where Ray has accelerator_type:NAME, as A100; default: anywhere",
            min_length=1,
        ),
    ] = None
    expert_accelerator: Annotated[
        str | None,
        setting("topology", "the same for expert actors; default: anywhere", min_length=1),
    ] = None
    balance: Annotated[
        Balance,
        setting(
            "expert balance",
            "off, only advise in the log, or move and replicate experts by itself (auto)",
        ),
    ] = "advise"
    redundant_experts: Annotated[
        int,
        setting(
            "expert balance",
            "copies of a layer's experts beyond one each; rounded up to as many on every actor",
            ge=0,
        ),
    ] = 0
    balance_window_s: Annotated[
        float, setting("expert balance", "seconds of load that are looked at", gt=0)
    ] = 60.0
    balance_min_gain: Annotated[
        float,
        setting("expert balance", "least share of the busiest ranks' rows to be saved", gt=0, le=1),
    ] = 0.1
    balance_cooldown_s: Annotated[
        float, setting("expert balance", "seconds between two proposals", ge=0)
    ] = 60.0

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

"""Everything that can be configured, as one frozen value.

A field here is at once a flag of `windrose serve` (`--max-num-seqs`), a key of `--config FILE`
and a key under `args:` of a Serve application file. Unknown keys are refused by name.
"""

from __future__ import annotations

from pydantic import ConfigDict, ValidationInfo, field_validator

from configs.model_settings import ModelSettings
from configs.pipeline_settings import PipelineSettings
from configs.process_settings import ProcessSettings
from configs.request_settings import RequestSettings


# The last base's fields come first.
class WindroseConfig(ProcessSettings, RequestSettings, PipelineSettings, ModelSettings):
    """One deployment: which model, on which actors, within which limits."""

    # An error names the setting and not its value, which may be a key.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

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

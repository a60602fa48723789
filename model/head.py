"""What stands on top of a model's layers, by the architecture that config.json names.

A ...ForCausalLM draws tokens; a bare ...Model gives a vector for a text (embeddings); a
...ForSequenceClassification gives the probability of each of its labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["generate", "embed", "classify"]
Pooling = Literal["last", "mean"]  # which rows of a text its vector comes from
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]

_TASKS: dict[str, Task] = {
    "ForCausalLM": "generate",
    "Model": "embed",
    "ForSequenceClassification": "classify",
}
FAMILIES = {"mixtral": "Mixtral", "mistral": "Mistral"}  # by model_type
_DOES: dict[Task, str] = {
    "generate": "generates text (/v1/chat/completions, /v1/completions)",
    "embed": "turns texts into vectors (/v1/embeddings)",
    "classify": "classifies texts (/classify)",
}


@dataclass(frozen=True, slots=True)
class ModelHead:
    """The top of one model. `labels`, `problem_type` and `pad_token_id` are a classifier's."""

    architecture: str = "MixtralForCausalLM"
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    pad_token_id: int | None = None

    @property
    def task(self) -> Task:
        """What the model is for."""
        for family in FAMILIES.values():
            task = _TASKS.get(self.architecture.removeprefix(family))
            if task is not None:
                return task
        raise ValueError(f"unknown architecture {self.architecture}")

    @property
    def what_it_does(self) -> str:
        """For whoever asks for something else."""
        return f"a {self.architecture}, which {_DOES[self.task]}"


def architectures_of(model_type: str) -> tuple[str, ...]:
    """Those that can be served, the usual one first."""
    return tuple(FAMILIES[model_type] + suffix for suffix in _TASKS)

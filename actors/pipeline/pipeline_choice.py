"""Which pipeline gets which request, as one ingress sees them: pure decisions.

A pipeline may have gone since it was last seen: whoever sends must be ready for another one to
get the request, and a router for requests that are not for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.messages import GenerateRequest
from actors.naming import pipeline_of, weights_of
from actors.pipeline.assignment import Assigner
from actors.pipeline.pipeline_report import PipelineReport

_FORGOTTEN_S = 60.0  # a router may be too busy to answer one look, and have all its prefixes yet


class PipelineChoice:
    """The longest beginning decides, unless that pipeline is overloaded; then the load."""

    def __init__(self, assigner: Assigner) -> None:
        self._assigner = assigner
        self._known: dict[str, PipelineReport] = {}
        self._loads: dict[str, int] = {}  # as reported, and what came and went since
        self._seen_s: dict[str, float] = {}  # when weights were served last
        self._answered_s: dict[str, float] = {}  # when a pipeline was seen last

    def look(self, reports: Sequence[PipelineReport], now_s: float) -> None:
        """Take in what all routers say of their pipelines."""
        self._known = {one.router.pipeline: one for one in reports}
        self._loads = {name: one.unfinished for name, one in self._known.items()}
        self._seen_s |= dict.fromkeys(map(weights_of, self._known), now_s)
        answered_s = self._answered_s | dict.fromkeys(self._known, now_s)
        self._answered_s = {
            name: at_s for name, at_s in answered_s.items() if now_s - at_s < _FORGOTTEN_S
        }
        self._assigner.keep(self._answered_s)

    @property
    def knows_any(self) -> bool:
        """Whether there was a pipeline at the last look."""
        return bool(self._known)

    def absent_s(self, weights: str, now_s: float) -> float:
        """For how long other pipelines have been there, but none with these weights."""
        if not self._known or any(weights_of(name) == weights for name in self._known):
            return 0.0
        return now_s - self._seen_s.setdefault(weights, now_s)

    def choose(self, request: GenerateRequest) -> str | None:
        """The name of the pipeline to send a request to; None where none is known to take it.

        One that cannot serve just now is chosen only where none can.
        """
        fit = [one for name, one in self._known.items() if fits(request, name, one.max_model_len)]
        fit = [one for one in fit if one.serving] or fit
        if not fit:
            return None
        names = [one.router.pipeline for one in fit]
        name = self._assigner.pick(request, {name: self._loads[name] for name in names})
        self._loads[name] += 1
        return name

    def knows(self, name: str) -> bool:
        """Whether this pipeline was there at the last look."""
        return name in self._known

    def serves(self, request: GenerateRequest) -> bool:
        """Whether a pipeline that can take this request served at the last look."""
        return any(
            one.serving and fits(request, name, one.max_model_len)
            for name, one in self._known.items()
        )

    def sole_attention(self, name: str | None) -> str | None:
        """The actor that all requests to this pipeline go to, while nothing ails it."""
        report = None if name is None else self._known.get(name)
        if report is None or not report.serving or report.num_attention > 1:
            return None
        return next(iter(report.attention), None)

    def outcasts(self, actors: Iterable[str]) -> set[str]:
        """Those of these attention actors that their pipelines serve without, as last seen."""
        found = set()
        for actor in actors:
            report = self._known.get(pipeline_of(actor))
            if report is not None and report.serving and actor not in report.attention:
                found.add(actor)
        return found

    def ended(self, name: str) -> None:
        """A request that was sent to this pipeline is there no more."""
        self._loads[name] = max(0, self._loads.get(name, 0) - 1)


def fits(request: GenerateRequest, name: str, max_model_len: int) -> bool:
    """Whether a request may go to this pipeline, or to an actor of it.

    Not where other weights began its answer, nor where it would be cut short.
    """
    length = len(request.prompt_token_ids) + request.params.max_tokens
    return request.weights in ("", weights_of(name)) and length <= max_model_len

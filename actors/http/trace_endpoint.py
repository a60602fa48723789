"""Where traces are to go, and whether this installation can send them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec

from configs.environment import OTLP_ENDPOINT
from configs.schema import WindroseConfig

_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


def trace_endpoint(config: WindroseConfig, environment: Mapping[str, str]) -> str | None:
    """The setting, or else the variable; None where there is neither.

    Raises:
        ValueError: the variable is no URL, or the exporter is not installed.
    """
    endpoint = config.otlp_endpoint or environment.get(OTLP_ENDPOINT) or None
    if endpoint is None:
        return None
    where = "otlp_endpoint" if config.otlp_endpoint else OTLP_ENDPOINT
    if not re.match(r"https?://[^/]+", endpoint):
        raise ValueError(f"{where} {endpoint!r} is not an http:// or https:// URL")
    if not _installed():
        raise ValueError(
            f"{where} is set and traces cannot be sent: install windrose[otel]"
            " (opentelemetry-exporter-otlp-proto-http)"
        )
    return endpoint


def _installed() -> bool:
    try:
        return find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:  # of a package above it
        return False

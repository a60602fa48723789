"""Settings: what all processes do alike: logs, devices and how long they wait."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel

from configs.setting import setting

CpuTransport = Literal["sockets", "gloo"]
Device = Literal["auto", "cpu", "cuda"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ProcessSettings(BaseModel):
    """Where it is written down, computed and waited for."""

    log_format: Annotated[
        LogFormat,
        setting(
            "logs and traces",
            "lines on stderr and in Ray's files; json: one object a line, and one for each request",
        ),
    ] = "text"
    log_level: Annotated[
        LogLevel, setting("logs and traces", "least that is written; debug: text has requests too")
    ] = "info"
    log_prompts: Annotated[
        bool,
        setting(
            "logs and traces",
            "DANGEROUS: write what people ask, and the answers, into the lines of requests",
        ),
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        setting(
            "logs and traces",
            "URL that spans of requests go to, by OTLP over HTTP, as http://host:4318; default:"
            " OTEL_EXPORTER_OTLP_ENDPOINT, else no traces",
            pattern=r"^https?://[^/]+",
        ),
    ] = None
    device: Annotated[Device, setting("CPU and GPU", "auto: cuda where there is one, else cpu")] = (
        "auto"
    )
    threads_per_actor: Annotated[
        int | None,
        setting(
            "CPU and GPU",
            "compute threads of an actor on cpu; default: by cores, topology and who computes",
            ge=1,
        ),
    ] = None
    cpus_per_actor: Annotated[
        float,
        setting("CPU and GPU", "CPUs Ray reserves for an actor; cuda adds one GPU each", gt=0),
    ] = 1.0
    cpu_transport: Annotated[
        CpuTransport,
        setting(
            "CPU and GPU",
            "what carries rows between actors on cpu: own sockets, or torch.distributed's gloo",
        ),
    ] = "sockets"
    shutdown_timeout_s: Annotated[
        float,
        setting("timeouts", "on SIGTERM, seconds accepted requests get to finish", ge=0),
    ] = 30.0
    peer_timeout_s: Annotated[
        float,
        setting("timeouts", "seconds an actor waits for another's message in a step", gt=0),
    ] = 10.0
    request_timeout_s: Annotated[
        float | None,
        setting(
            "timeouts",
            "seconds from a request's arrival to the end of its answer; default: any",
            gt=0,
        ),
    ] = None
    body_timeout_s: Annotated[
        float,
        setting("timeouts", "seconds a client gets to send a request's body before a 408", gt=0),
    ] = 60.0
    pipeline_wait_s: Annotated[
        float,
        setting("timeouts", "seconds a request waits for a pipeline before a 503", gt=0),
    ] = 120.0
    start_timeout_s: Annotated[
        float,
        setting("timeouts", "seconds a pipeline gets to place, load and warm up", gt=0),
    ] = 1800.0

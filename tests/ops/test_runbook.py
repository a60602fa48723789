"""ops/RUNBOOK.md: every command, flag, file, metric, log line and figure in it is true."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from dataclasses import fields

import pytest
from ray._private.authentication.authentication_constants import (
    TOKEN_AUTH_ENABLED_BUT_NO_TOKEN_FOUND_ERROR_MESSAGE,
)

from actors.http.api import create_api
from actors.metrics.metric_table import METRICS
from actors.pipeline import survey
from actors.pipeline.pipeline_report import PipelineReport
from actors.pipeline.recovery import obstacle
from configs.schema import WindroseConfig
from model.config import ModelConfig
from model.kv_size import block_bytes
from model.placement import ExpertPlacement
from ops.flags import flags_of
from tests.actors.http_serving import make_state
from tests.command_lines import ROOT, check_line, check_mention, commands_of

TEXT = (ROOT / "ops/RUNBOOK.md").read_text()
BLOCKS = re.findall(r"(?ms)^```\n(.*?)^```$", TEXT)
PROSE = re.sub(r"(?ms)^```\n.*?^```$", "", TEXT)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]

PROGRAMS = ("windrose", "ray", "serve", "make", "python")
SEEN = "|".join(PROGRAMS)

# Mixtral-8x7B: bytes in bf16.
EXPERT = 3 * 4096 * 14336 * 2
LAYERS, EXPERTS = 32, 8


def lines_of_blocks() -> list[str]:
    return [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]


def shown_commands() -> list[str]:
    return [line for line in lines_of_blocks() if line]


def test_every_command_would_be_understood() -> None:
    mentions = [span for span in SPANS if re.match(rf"({SEEN}) [a-z-]", span)]
    found = [check_line(line) for line in shown_commands()]
    found += [check_mention(span) for span in mentions]
    programs = Counter(program for programs in found for program in programs)
    assert {"windrose", "ray", "serve", "make", "ops.chaos", "ops.drain_node"} <= set(programs)
    assert programs["windrose"] >= 8
    assert programs["ray"] >= 6


@pytest.mark.parametrize(
    "line",
    [
        "windrose serve m --expert-actor 4",
        "windrose experts scale",
        "windrose sail",
        "ray up --yess cluster/aws.yaml",
        "ray upp cluster/aws.yaml",
        "ray up cluster/none.yaml",
        "ray exec cluster/aws.yaml 'serve deployy x.yaml'",
        "serve deploy",
        "make soup",
        "python -m ops.chaos --serve m --duraton 60",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_line(line)


def test_commands_are_found_in_lines() -> None:
    line = "A=1 ulimit -n 9; B=2 ray start --head && serve status > /dev/null | cat"
    assert commands_of(line) == [
        ["ulimit", "-n", "9"],
        ["ray", "start", "--head"],
        ["serve", "status"],
        ["cat"],
    ]


def test_every_flag_is_one_of_windrose_serve() -> None:
    known = {flag for name in WindroseConfig.model_fields for flag in flags_of(name)}
    shown = [flag for span in SPANS if span.startswith("--") for flag in [span.split()[0]]]
    assert len(shown) >= 10
    assert set(shown) <= known


def test_every_setting_s_value_is_the_default_it_says() -> None:
    config = WindroseConfig(model="m")
    assert f"`--max-num-seqs` ({config.max_num_seqs} by default" in TEXT
    assert f"on port {config.port}" in " ".join(TEXT.split())


def test_every_file_is_there() -> None:
    named = {span for span in SPANS if re.match(r"(cluster|configs|ops|model|actors)/\S+$", span)}
    linked = set(re.findall(r"\]\(\.\./(.*?)\)", TEXT))
    for block in lines_of_blocks():
        named |= {word for word in block.split() if re.match(r"(cluster|configs)/", word)}
    assert len(named) >= 6
    for path in named | linked:
        assert (ROOT / path).exists(), path


def test_every_route_is_served() -> None:
    routes = {getattr(route, "path", None) for route in create_api(make_state()).routes}
    shown = {
        span.removeprefix("GET ") for span in SPANS if re.match(r"(GET )?/(v1/|health|met)", span)
    }
    assert shown == {"/health", "/v1/experts", "/metrics"}
    assert shown <= routes


def test_every_metric_is_exported() -> None:
    known = {name: metric for metric in METRICS for name in (metric.name, *metric.sample_names)}
    shown = [span for span in SPANS if span.startswith("windrose_")]
    assert len(set(shown)) >= 15
    for span in shown:
        metric = known[span.partition("{")[0]]
        assert set(re.findall(r"\{(\w+)=", span)) <= set(metric.labels)


def test_every_key_of_the_experts_body_is_there() -> None:
    source = inspect.getsource(survey)
    keys = [key for span in SPANS if "[]." in span for key in span.split("[].")]
    assert keys == ["pipelines", "obstacle", "pipelines", "replacing"]
    for key in [*keys, "fault", "recoveries"]:
        assert f'"{key}":' in source
        assert f"`{key}`" in TEXT or f"{key}[]" in TEXT or f".{key}`" in TEXT
    assert {"obstacle", "recoveries"} <= {one.name for one in fields(PipelineReport)}


def log_templates() -> list[str]:
    """Of every call of a logger in actors/ that is written by default."""
    files = sorted((ROOT / "actors").rglob("*.py"))
    calls = [
        node
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "logger"
        and node.func.attr in ("info", "warning", "error", "exception")
    ]
    return [str(ast.literal_eval(call.args[0])) for call in calls]


def test_every_event_is_in_the_table() -> None:
    source = "".join(path.read_text() for path in (ROOT / "actors").rglob("*.py"))
    written = set(re.findall(r'\babout\(\s*"(\w+)"', source)) | {"log"}
    (table,) = re.findall(r"(?s)\| event \| of \| fields \|\n(.*?)\n\n", TEXT)
    shown = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert written == shown


def begins(line: str, template: str) -> bool:
    """Whether `line` is how a line of the %-template `template` begins."""
    at = 0
    first, *rest = re.split(r"%[-\d.]*[sdf]", template)
    if not line.startswith(first):
        return False
    at = len(first)
    for piece in rest:
        found = line.find(piece, at + 1)
        if found < 0:
            ends = [line.endswith(piece[:length]) for length in range(1, len(piece) + 1)]
            return any(ends)
        at = found + len(piece)
    return True


def test_every_log_line_is_written() -> None:
    templates = log_templates()
    shown = [
        span.removesuffix("...")
        for span in SPANS
        if re.match(r"(recovered|nothing can|no actor|ingress .* gone|epoch)", span)
    ]
    assert len(shown) == 5
    for line in shown:
        assert any(begins(line, template) for template in templates), line
    assert not begins("recovered from nothing", templates[0])
    assert TOKEN_AUTH_ENABLED_BUT_NO_TOKEN_FOUND_ERROR_MESSAGE in SPANS


def test_the_obstacle_is_said_so() -> None:
    (line,) = [span for span in SPANS if span.startswith("nothing can be served")]
    placement = ExpertPlacement(1, tuple([tuple([(1,)] * 3 + [(2,)])]))
    assert line.endswith(f": {obstacle([0], [1], placement)}")


def test_the_sizes_are_mixtral_s() -> None:
    assert f"| {EXPERT / 1e6:.0f} MB |" in TEXT
    everything = EXPERT * LAYERS * EXPERTS
    assert f"{everything / 1e9:.1f} GB, shared" in TEXT
    rows = re.findall(r"(?m)^\| (\d) \| ([\d.]+) GB \|$", TEXT)
    assert [int(actors) for actors, _ in rows] == [1, 2, 4, 8]
    for actors, size in rows:
        assert float(size) == pytest.approx(everything / int(actors) / 1e9, abs=0.06)
    assert f"takes {EXPERT * LAYERS / 1e9:.1f} GB" in TEXT
    parameters = 46_702_792_704  # as the checkpoint's index counts them
    assert f"{2 * parameters / 1e9:.1f} GB on disk" in TEXT


def test_the_cache_holds_what_it_says() -> None:
    mixtral = ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        num_layers=LAYERS,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14336,
        num_experts=EXPERTS,
        top_k=2,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        max_position_embeddings=32768,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    token = block_bytes(mixtral, 1, "bfloat16")
    assert token == 128 << 10
    shown = dict(re.findall(r"([\d,]{7}) on (\d+) GB", TEXT))
    assert len(shown) == 3
    for tokens, gpu in shown.items():
        holds = (int(gpu) * 1e9 - 3.2e9) * 0.8 / token
        assert int(tokens.replace(",", "")) == pytest.approx(holds, rel=0.002)


def test_the_experts_that_a_step_touches() -> None:
    (formula,) = re.findall(r"2 at B = 1, ([\d.]+) at 4, ([\d.]+) at 8", TEXT)
    for batch, shown in zip((4, 8), formula, strict=True):
        assert float(shown) == pytest.approx(8 * (1 - 0.75**batch), abs=0.06)

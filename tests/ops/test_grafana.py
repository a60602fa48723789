"""Dashboards: their files, what they ask for, and their way into a Grafana."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.metrics.metric_table import METRICS
from ops.cli import main
from ops.grafana.boards import DASHBOARDS, DASHBOARDS_DIR, text_of
from ops.grafana.panels import Dashboard
from tests.ops.grafana_stub import TOKEN, Grafana, grafana_server

PROMETHEUS = Path(__file__).parents[2] / "ops" / "prometheus"
_NAME = re.compile(r"\bwindrose[a-z0-9_:]+")


def known_names() -> set[str]:
    """Of all samples and recorded series."""
    rules = yaml.safe_load((PROMETHEUS / "recording.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    return recorded | {name for metric in METRICS for name in metric.sample_names}


def test_the_files_are_what_the_code_says() -> None:
    files = {path.name: path.read_text() for path in DASHBOARDS_DIR.glob("*.json")}
    assert files == {f"{one.uid}.json": text_of(one) for one in DASHBOARDS}


@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_rules_read_only_what_there_is(file: str) -> None:
    rules = yaml.safe_load((PROMETHEUS / file).read_text())
    asked = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in _NAME.findall(rule["expr"])
    }
    assert asked and asked <= known_names()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_panels_read_only_what_there_is_and_do_not_overlap(dashboard: Dashboard) -> None:
    asked = {
        name
        for panel in dashboard.panels
        for query in panel.queries
        for name in _NAME.findall(query.expr)
    }
    assert asked and asked <= known_names()
    asked_for = {name for one in dashboard.variables for name in _NAME.findall(one.label_values)}
    assert asked_for <= known_names()
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.json()["panels"]:
        at = panel["gridPos"]
        cells = set(product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert at["x"] + at["w"] <= 24 and not cells & taken
        taken |= cells


def test_between_them_they_show_every_metric() -> None:
    shown = " ".join(query.expr for one in DASHBOARDS for p in one.panels for query in p.queries)
    shown += (PROMETHEUS / "recording.yml").read_text()
    missing = [m.name for m in METRICS if not any(name in shown for name in m.sample_names)]
    assert missing == []


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    with grafana_server() as server:
        yield server


def push(grafana: Grafana, token: str = TOKEN) -> int:
    return main(["grafana", "push", "--url", grafana.url, "--token", token])


def test_the_first_push_creates_and_the_second_changes_nothing(
    grafana: Grafana, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(grafana) == 0
    assert grafana.folders == {"windrose": "Windrose"}
    assert set(grafana.folder_of.values()) == {"windrose"}
    assert [*grafana.dashboards] == [one.uid for one in DASHBOARDS]
    for one in DASHBOARDS:
        held = {k: v for k, v in grafana.dashboards[one.uid].items() if k not in ("id", "version")}
        assert held == json.loads(text_of(one))
    assert capsys.readouterr().out.count("created: ") == len(DASHBOARDS)
    written = list(grafana.writes)
    assert push(grafana) == 0
    assert grafana.writes == written
    assert capsys.readouterr().out.count("unchanged: ") == len(DASHBOARDS)


def test_what_was_changed_there_is_put_right(
    grafana: Grafana, capsys: pytest.CaptureFixture[str]
) -> None:
    push(grafana)
    one = grafana.dashboards["windrose-experts"]
    one |= {"title": "mine", "version": 8}
    grafana.folder_of["windrose-serving"] = ""
    del grafana.dashboards["windrose-actors"], grafana.folder_of["windrose-actors"]
    capsys.readouterr()
    assert push(grafana) == 0
    out = capsys.readouterr().out
    assert (out.count("updated: "), out.count("created: "), out.count("unchanged: ")) == (2, 1, 1)
    assert grafana.dashboards["windrose-experts"]["title"] == "Windrose: experts"
    assert grafana.dashboards["windrose-experts"]["version"] == 9
    assert grafana.folder_of["windrose-serving"] == "windrose"


def test_a_dashboard_saved_by_somebody_meanwhile_is_read_again(
    grafana: Grafana, capsys: pytest.CaptureFixture[str]
) -> None:
    push(grafana)
    one: dict[str, Any] = grafana.dashboards["windrose-serving"]
    one["title"] = "mine"
    saves = []

    def somebody_saves() -> None:
        saves.append(1)
        if len(saves) == 1:
            one["version"] += 1

    grafana.before_save = somebody_saves
    assert push(grafana) == 0
    assert len(saves) == 2
    assert grafana.dashboards["windrose-serving"]["title"] == "Windrose: serving"
    grafana.dashboards["windrose-serving"]["title"] = "mine"

    def always() -> None:
        grafana.dashboards["windrose-serving"]["version"] += 1

    grafana.before_save = always
    assert push(grafana) == 1
    assert "windrose-serving is being changed by somebody else" in capsys.readouterr().err


def test_refusals_say_what_is_wrong(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(grafana, "wrong") == 1
    assert "Unauthorized" in capsys.readouterr().err
    assert main(["grafana", "push", "--url", "127.0.0.1:3000", "--token", "x"]) == 2
    assert "--url '127.0.0.1:3000' is not http://HOST" in capsys.readouterr().err
    assert main(["grafana", "push", "--url", "http://127.0.0.1:1", "--token", "x"]) == 1
    assert "no Grafana answers at http://127.0.0.1:1" in capsys.readouterr().err
    assert grafana.writes == []

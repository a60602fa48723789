"""The four dashboards. `python -m ops.grafana.boards` writes their JSON to ops/grafana/dashboards.

Queries read the metrics of actors/metrics/metric_table.py and the rules of
ops/prometheus/recording.yml.
"""

from __future__ import annotations

import json
from pathlib import Path

from ops.grafana.expert_boards import EXPERTS, PLACEMENT
from ops.grafana.panels import Dashboard
from ops.grafana.request_boards import ACTORS, SERVING

DASHBOARDS_DIR = Path(__file__).parent / "dashboards"
DASHBOARDS = (SERVING, EXPERTS, ACTORS, PLACEMENT)


def text_of(dashboard: Dashboard) -> str:
    """The file's content."""
    return json.dumps(dashboard.json(), indent=2) + "\n"


def write() -> None:
    """Write every dashboard to its file."""
    for dashboard in DASHBOARDS:
        (DASHBOARDS_DIR / f"{dashboard.uid}.json").write_text(text_of(dashboard))


if __name__ == "__main__":
    write()

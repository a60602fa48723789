"""cluster/local.yaml, as Ray itself reads it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster" / "local.yaml"
PLACEHOLDERS = {
    "HEAD_IP": "10.0.0.1",
    "WORKER_1_IP": "10.0.0.2",
    "WORKER_2_IP": "10.0.0.3",
    "SSH_USER": "ray",
    "PROJECT_URL": "https://git.example.org/windrose",
}


@pytest.fixture
def config() -> dict[str, Any]:
    """The file with its placeholders filled in."""
    text = FILE.read_text()
    for placeholder, value in PLACEHOLDERS.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    filled: dict[str, Any] = yaml.safe_load(text)
    return filled


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    workers = prepared["available_node_types"][prepared["head_node_type"]]
    assert (workers["min_workers"], workers["max_workers"]) == (2, 2)


def test_ray_would_refuse_a_slip(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="'head_start_ray_command' was unexpected"):
        validate_config(prepare_config(config | {"head_start_ray_command": ["ray start"]}))


def test_every_machine_asks_for_the_token(config: dict[str, Any]) -> None:
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0].split("ray start")[0]


def test_the_project_is_pinned_to_the_version_of_this_tree(config: dict[str, Any]) -> None:
    with open(FILE.parents[1] / "pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    (install,) = (command for command in config["setup_commands"] if "pip install" in command)
    assert f"{PLACEHOLDERS['PROJECT_URL']}@v{version}'" in install

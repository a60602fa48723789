"""The files in configs/, as Ray Serve reads them and as Windrose does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from configs.config_file import read_config_file
from configs.schema import WindroseConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))


def application_of(path: Path) -> ServeApplicationSchema:
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = deploy.applications
    assert isinstance(application, ServeApplicationSchema)
    return application


def test_both_files_are_there() -> None:
    assert [path.name for path in FILES] == ["demo.yaml", "mixtral_8x7b.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_serve_knows_every_key(path: Path) -> None:
    """Ray ignores keys that it does not know, so a typing error would go unnoticed."""
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    deploy = ServeDeploySchema.model_validate(data)
    (application,) = deploy.applications
    assert deploy.model_fields_set == set(data)
    assert deploy.http_options.model_fields_set == set(data["http_options"])
    assert application.model_fields_set == set(data["applications"][0])
    assert (deploy.http_options.host, deploy.http_options.port) == (
        data["http_options"]["host"],
        data["http_options"]["port"],
    )
    assert application.route_prefix == "/"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_windrose_reads_the_same_settings(path: Path) -> None:
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    http = {"host": deploy.http_options.host, "port": deploy.http_options.port}
    from_args = WindroseConfig.model_validate({**application_of(path).args, **http})
    assert WindroseConfig.model_validate(read_config_file(path)) == from_args


def test_what_they_serve() -> None:
    demo, mixtral = (WindroseConfig.model_validate(read_config_file(path)) for path in FILES)
    assert (demo.model, demo.model_name) == ("configs/demo", "demo")
    assert (demo.attention_actors, demo.expert_actors) == (1, 2)
    assert demo.cpus_per_actor == 0.25
    assert (mixtral.attention_actors, mixtral.expert_actors) == (1, 4)
    assert mixtral.device == "cuda"
    assert mixtral.model == "/models/Mixtral-8x7B-Instruct-v0.1"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_serve_hands_the_args_to_the_builder_as_a_config(path: Path) -> None:
    """Ray turns `args` into WindroseConfig only where it sees the class in the signature."""
    application = application_of(path)
    builder = import_attr(application.import_path)
    with pytest.raises(ValidationError, match=r"max_num_seq\n.*Extra inputs are not permitted"):
        call_user_app_builder_with_args_if_necessary(
            builder, {**application.args, "max_num_seq": 8}
        )

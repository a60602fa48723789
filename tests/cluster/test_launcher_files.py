"""cluster/aws.yaml and cluster/gcp.yaml, as Ray's cluster launcher reads them, and beyond that."""

from __future__ import annotations

import math
import re
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from pydantic import BaseModel, ConfigDict
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.util.accelerators import accelerators

from cluster.placement import pipeline_bundles
from configs.config_file import read_config_file
from configs.schema import WindroseConfig
from tests.command_lines import ROOT, check_line, commands_of

NAMES = ("aws", "gcp")

# What the providers' pages say of the machines: CPUs, GPUs and how Ray calls the GPU.
MACHINES: dict[str, tuple[int, int, str | None]] = {
    "m7i.2xlarge": (8, 0, None),
    "g7e.2xlarge": (8, 1, accelerators.NVIDIA_RTX_PRO_6000),
    "p5.4xlarge": (16, 1, accelerators.NVIDIA_H100),
    "n2-standard-8": (8, 0, None),
    "a2-ultragpu-1g": (12, 1, accelerators.NVIDIA_A100),
    "a3-highgpu-1g": (26, 1, accelerators.NVIDIA_H100),
}


def text_of(name: str) -> str:
    return (ROOT / "cluster" / f"{name}.yaml").read_text()


def written(name: str) -> dict[str, Any]:
    config = yaml.safe_load(text_of(name))
    assert isinstance(config, dict)
    return config


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prepared(name: str) -> dict[str, Any]:
    """The file as `ray up` completes it."""
    config: dict[str, Any] = prepare_config(written(name))
    return config


def machine_type(node_type: dict[str, Any]) -> str:
    node = node_type["node_config"]
    return str(node.get("InstanceType") or node["machineType"])


def test_ray_takes_it(name: str, prepared: dict[str, Any]) -> None:
    validate_config(prepared)
    assert prepared["provider"]["type"] == name
    assert set(prepared["available_node_types"]) == {"head", "attention", "expert"}
    # Ray's defaults for the machine types would have brought some of its own.
    assert "ray.worker.default" not in prepared["available_node_types"]


def test_a_typing_error_is_noticed(prepared: dict[str, Any]) -> None:
    prepared["available_node_types"]["expert"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepared)


def test_as_many_machines_as_the_application_needs(prepared: dict[str, Any]) -> None:
    """The least number holds one pipeline, the greatest is allowed to be reached."""
    types = prepared["available_node_types"]
    for node_type in types.values():
        assert 0 <= node_type["min_workers"] <= node_type["max_workers"]
    assert types["head"]["max_workers"] == 0
    workers = [types["attention"], types["expert"]]
    assert sum(one["max_workers"] for one in workers) <= prepared["max_workers"]
    config = served(prepared)
    assert types["attention"]["min_workers"] >= config.attention_actors
    assert types["expert"]["min_workers"] >= config.expert_actors
    bundles = pipeline_bundles(config, "cuda")
    for resource in ("CPU", "GPU"):
        there = sum(one["min_workers"] * one["resources"][resource] for one in workers)
        assert there >= sum(bundle.get(resource, 0) for bundle in bundles)


def served(config: dict[str, Any]) -> WindroseConfig:
    """The application that the file's comment tells to deploy."""
    local = config["file_mounts"]["/home/ubuntu/windrose/app.yaml"]
    return WindroseConfig.model_validate(read_config_file(ROOT / local))


def test_resources_are_those_of_the_machines(prepared: dict[str, Any]) -> None:
    for node_type in prepared["available_node_types"].values():
        cpus, gpus, accelerator = MACHINES[machine_type(node_type)]
        expected = {"CPU": cpus, "GPU": gpus}
        if accelerator is not None:
            expected[f"accelerator_type:{accelerator}"] = 1
        assert node_type["resources"] == expected


def test_the_head_takes_no_work_of_a_gpu(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    kinds = [set(types[role]["resources"]) - {"CPU", "GPU"} for role in ("attention", "expert")]
    assert kinds[0].isdisjoint(kinds[1]), "attention and experts have GPUs of different kinds"


def start_commands(config: dict[str, Any]) -> list[list[str]]:
    lines = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [
        command
        for line in lines
        for command in commands_of(line)
        if command[:2] == ["ray", "start"]
    ]


def test_ray_is_started_with_flags_that_it_has(prepared: dict[str, Any]) -> None:
    for line in prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]:
        assert "ray" in check_line(line)
    head, worker = start_commands(prepared)
    assert "--head" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert worker == ["ray", "start", "--address=$RAY_HEAD_IP:6379"]
    assert "--port=6379" in head


def test_ray_asks_for_its_token(prepared: dict[str, Any]) -> None:
    """On all machines, with the token of who called `ray up`; without one Ray does not start."""
    for lines in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        (start,) = [line for line in lines if "ray start" in line]
        assert "RAY_AUTH_MODE=token ray start" in start
    assert prepared["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert prepared["auth"]["ssh_user"] == "ubuntu"  # whose home /home/ubuntu is
    settings = (ROOT / "cluster/node/settings.env").read_text()
    assert re.search(r"(?m)^export RAY_AUTH_MODE=token$", settings)


def test_nothing_is_open_but_ssh(prepared: dict[str, Any]) -> None:
    assert "security_group" not in prepared["provider"], "rules beyond Ray's own"
    head, _ = start_commands(prepared)
    assert "--dashboard-host=127.0.0.1" in head
    assert not any("client-server-port" in word for word in head)


def test_what_is_copied_is_there(prepared: dict[str, Any]) -> None:
    mounts = dict(prepared["file_mounts"])
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    for local in mounts.values():
        assert (ROOT / local).exists(), local
    assert mounts["/home/ubuntu/windrose/node"] == "cluster/node"
    assert prepared["head_setup_commands"][0] == "bash ~/windrose/node/setup.sh"
    assert prepared["worker_setup_commands"] == ["bash ~/windrose/node/setup.sh"]


def test_the_version_stands_in_one_place(name: str) -> None:
    settings = (ROOT / "cluster/node/settings.env").read_text()
    assert len(re.findall(r"(?m)^export WINDROSE_SOURCE=", settings)) == 1
    assert "WINDROSE_SOURCE" not in text_of(name)
    assert "cluster/node/settings.env" in text_of(name)


def test_the_weights_come_to_where_the_application_reads_them(prepared: dict[str, Any]) -> None:
    settings = (ROOT / "cluster/node/settings.env").read_text()
    (directory,) = re.findall(r'(?m)^export WINDROSE_MODEL_DIR="(.*)"$', settings)
    assert directory == served(prepared).model


def test_every_disk_holds_the_checkpoint(prepared: dict[str, Any]) -> None:
    """The head too: Serve builds the application there, which reads all headers."""
    for node_type in prepared["available_node_types"].values():
        node = node_type["node_config"]
        if "disks" in node:
            (size,) = [disk["initializeParams"]["diskSizeGb"] for disk in node["disks"]]
        else:
            (size,) = [one["Ebs"]["VolumeSize"] for one in node["BlockDeviceMappings"]]
        mixtral_gb = math.ceil(46.7 * 2)
        assert size >= 2 * mixtral_gb, "the checkpoint, its download's leftovers, and the packages"


def test_commands_in_comments_exist(name: str) -> None:
    shown = [
        line.lstrip("# ").strip()
        for line in text_of(name).splitlines()
        if re.match(r"# +(ray|windrose|serve) [a-z]", line)
    ]
    programs = [program for line in shown for program in check_line(line.partition("  ")[0])]
    assert programs.count("ray") >= 4
    assert "windrose" in programs
    assert any(line.startswith("In the end: ray down") for line in map(str.strip, comment(name)))


def comment(name: str) -> list[str]:
    return [line.lstrip("#") for line in text_of(name).splitlines() if line.startswith("#")]


def test_ec2_knows_every_setting_of_a_machine() -> None:
    """Against the API's own model, as boto3 checks a call of RunInstances."""
    model = botocore.session.Session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for node_type in written("aws")["available_node_types"].values():
        call = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(call, shape)
        assert not report.has_errors(), report.generate_report()
        assert re.fullmatch(r"ami-[0-9a-f]{17}", call["ImageId"])
    call["BlockDeviceMapping"] = []
    assert ParamValidator().validate(call, shape).has_errors()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _DiskParams(_Strict):
    diskSizeGb: int
    sourceImage: str


class _Disk(_Strict):
    boot: bool
    autoDelete: bool
    type: str
    initializeParams: _DiskParams


class _Scheduling(_Strict):
    onHostMaintenance: str
    automaticRestart: bool
    provisioningModel: str | None = None
    instanceTerminationAction: str | None = None


class _ServiceAccount(_Strict):
    email: str
    scopes: list[str]


class _Instance(_Strict):
    """Of Compute Engine's REST resource `instances`, the fields that the file uses."""

    machineType: str
    disks: list[_Disk]
    scheduling: _Scheduling | None = None
    serviceAccounts: list[_ServiceAccount] = []


def test_compute_engine_settings() -> None:
    for role, node_type in written("gcp")["available_node_types"].items():
        node = _Instance.model_validate(node_type["node_config"])
        (disk,) = node.disks
        assert disk.boot and disk.autoDelete
        assert re.fullmatch(
            r"projects/[a-z-]+/global/images/family/[a-z0-9-]+", disk.initializeParams.sourceImage
        )
        if role != "head":  # machines with GPUs cannot move to another host
            assert node.scheduling is not None
            assert node.scheduling.onHostMaintenance == "TERMINATE"
            assert "nvidia" in disk.initializeParams.sourceImage


def test_both_tell_the_same_story() -> None:
    """What is not the provider's own is the same line for line."""
    aws, gcp = (written(name) for name in NAMES)
    same = ("file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    assert all(aws[key] == gcp[key] for key in same)
    assert {path.name for path in (ROOT / "cluster/node").iterdir()} == {
        "settings.env",
        "setup.sh",
        "fetch_weights.sh",
    }

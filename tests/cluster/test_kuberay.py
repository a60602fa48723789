"""cluster/kuberay/: as Kubernetes, KubeRay, Ray's autoscaler and Serve read it."""

from __future__ import annotations

import inspect
import math
import re
from copy import deepcopy
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import validate_config
from ray.dashboard.modules.reporter import healthz_agent
from ray.scripts.scripts import cli as ray_cli
from ray.serve.schema import ServeDeploySchema

from actors.http.api import create_api
from cluster.placement import INGRESS_CPUS, pipeline_bundles
from configs.schema import WindroseConfig
from ops.drain_node import arguments
from tests.actors.http_serving import make_state
from tests.cluster.rayservice_fields import RayService
from tests.command_lines import ROOT

KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that pod templates are held against
FOLDER = ROOT / "cluster/kuberay"

Json = dict[str, Any]


def documents(name: str) -> list[Json]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.fixture
def body() -> Json:
    (body,) = documents("rayservice.yaml")
    return body


@pytest.fixture
def service(body: Json) -> RayService:
    return RayService.model_validate(body)


@pytest.fixture
def deployed(service: RayService) -> WindroseConfig:
    data = yaml.safe_load(service.spec.serveConfigV2)
    (application,) = data["applications"]
    return WindroseConfig.model_validate({**application["args"], **data["http_options"]})


def pods(service: RayService) -> dict[str, Json]:
    cluster = service.spec.rayClusterConfig
    groups = {"head": cluster.headGroupSpec.template}
    return groups | {one.groupName: one.template for one in cluster.workerGroupSpecs}


def container(pod: Json) -> Json:
    (only,) = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def ports(of: Json) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in of["ports"]}


def test_kuberay_knows_every_field(service: RayService) -> None:
    assert service.metadata.name == "windrose"
    groups = [one.groupName for one in service.spec.rayClusterConfig.workerGroupSpecs]
    assert groups == ["attention", "expert"]


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("spec", "serveConfig"), "x", "serveConfig\n.*Extra inputs"),
        (("spec", "rayClusterConfig", "authOption"), {}, "authOption\n.*Extra inputs"),
        (("spec", "rayClusterConfig", "rayVersion"), "2.51.0", "token needs Ray 2.52"),
        (("spec", "rayClusterConfig", "rayVersion"), 2.6, "valid string"),
        (("spec", "rayClusterConfig", "headGroupSpec", "resources"), {"CPU": "1"}, "both set"),
    ],
)
def test_errors_are_noticed(body: Json, path: tuple[str, ...], value: object, reason: str) -> None:
    at = body
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ValidationError, match=reason):
        RayService.model_validate(body)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_pods(service: RayService, version: str) -> None:
    for role, template in pods(service).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, **template}
        kubernetes_validate.validate(pod, version, strict=True)
        wrong = deepcopy(pod)
        container(wrong)["livenessprobe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
            kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_redis(version: str) -> None:
    kinds = []
    for document in documents("redis.yaml"):
        kubernetes_validate.validate(document, version, strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Service", "StatefulSet"]


def test_serve_takes_the_application(service: RayService) -> None:
    data = yaml.safe_load(service.spec.serveConfigV2)
    deploy = ServeDeploySchema.model_validate(data)
    (application,) = deploy.applications
    assert deploy.model_fields_set == set(data)
    assert application.model_fields_set == set(data["applications"][0])
    assert import_attr(application.import_path).__name__ == "build_app"
    assert (deploy.http_options.host, application.route_prefix) == ("0.0.0.0", "/")


def test_ray_is_the_image_s(service: RayService) -> None:
    cluster = service.spec.rayClusterConfig
    assert cluster.rayVersion == ray.__version__
    images = {container(pod)["image"] for pod in pods(service).values()}
    assert len(images) == 1, "all pods run one version"
    (image,) = images
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+", image), "pinned"
    text = (FOLDER / "rayservice.yaml").read_text()
    assert len(re.findall(rf"(?m)^ +image: .*{re.escape(image)}", text)) == 1, "set in one place"


def test_ray_start_knows_every_parameter(service: RayService) -> None:
    """KubeRay makes `ray start --KEY=VALUE` of them."""
    known = {option for param in ray_cli.commands["start"].params for option in param.opts}
    cluster = service.spec.rayClusterConfig
    for group in [cluster.headGroupSpec, *cluster.workerGroupSpecs]:
        assert {f"--{key}" for key in group.rayStartParams} <= known


def test_the_autoscaler_understands_the_groups(
    service: RayService, body: Json, deployed: WindroseConfig
) -> None:
    """Ray's own reading of the groups: their resources are the pods', and one pipeline fits."""
    metadata = {"name": "windrose", "namespace": "default"}
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": metadata, "spec": deepcopy(body["spec"]["rayClusterConfig"])}
    )
    validate_config(config)
    types = config["available_node_types"]
    head = next(name for name in types if name.startswith("head"))
    assert types[head]["resources"]["CPU"] == 0
    assert types[head]["resources"].get("GPU", 0) == 0, "the head takes no work"
    bundles = pipeline_bundles(deployed, "cuda")
    for resource in ("CPU", "GPU"):
        there = sum(
            types[name]["min_workers"] * types[name]["resources"][resource]
            for name in ("attention", "expert")
        )
        ingresses = deployed.ingress_replicas * INGRESS_CPUS if resource == "CPU" else 0
        assert there >= sum(bundle.get(resource, 0) for bundle in bundles) + ingresses
    kinds = []
    for group in service.spec.rayClusterConfig.workerGroupSpecs:
        resources = types[group.groupName]["resources"]
        limits = container(group.template)["resources"]["limits"]
        assert resources["CPU"] == int(limits["cpu"])
        assert resources["GPU"] == int(limits["nvidia.com/gpu"])
        (accelerator,) = [key for key in resources if key.startswith("accelerator_type:")]
        product = group.template["spec"]["nodeSelector"]["nvidia.com/gpu.product"]
        assert accelerator.partition(":")[2] in product.split("-"), "the kind that is selected"
        kinds.append(accelerator)
    assert len(set(kinds)) == 2
    assert types["attention"]["min_workers"] >= deployed.attention_actors
    assert types["expert"]["min_workers"] >= deployed.expert_actors


def test_the_token_is_on(service: RayService) -> None:
    cluster = service.spec.rayClusterConfig
    assert cluster.authOptions is not None
    assert cluster.authOptions.mode == "token"
    for pod in pods(service).values():
        names = {one["name"] for one in container(pod)["env"]}
        assert not names & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}, "would take the place of KubeRay's"


def test_probes_ask_what_answers(service: RayService, deployed: WindroseConfig) -> None:
    routes = {getattr(route, "path", None) for route in create_api(make_state()).routes}
    agent = re.findall(r'routes\.get\("(.*?)"\)', inspect.getsource(healthz_agent))
    for role, pod in pods(service).items():
        one = container(pod)
        assert ports(one)["serve"] == deployed.port == 8000
        if role == "head":  # Serve is deployed when it is ready: it must not wait for Serve
            assert not {"readinessProbe", "livenessProbe"} & set(one)
            continue
        ready, alive = one["readinessProbe"]["httpGet"], one["livenessProbe"]["httpGet"]
        assert ready == {"path": "/health", "port": "serve"}
        assert ready["path"] in routes
        assert alive["path"] in agent, "Ray's agent, which lives as long as the node does"
        assert alive["path"] not in routes, "a pod that reads weights must not be ended"
        (default,) = [
            param.default
            for param in ray_cli.commands["start"].params
            if "--dashboard-agent-listen-port" in param.opts
        ]
        assert alive["port"] == default


def test_a_pod_drains_before_it_ends(service: RayService, deployed: WindroseConfig) -> None:
    for role, pod in pods(service).items():
        grace_s = pod["spec"]["terminationGracePeriodSeconds"]
        if role == "head":
            continue
        program, *argv = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
        assert (program, argv[:2]) == ("python", ["-m", "ops.drain_node"])
        timeout_s = arguments(argv[2:]).timeout
        assert deployed.shutdown_timeout_s < timeout_s < grace_s, role
        assert grace_s - timeout_s >= 10, "Ray itself must end too"
    delay_s = service.spec.rayClusterDeletionDelaySeconds
    assert delay_s is not None
    assert delay_s > deployed.shutdown_timeout_s


def test_the_checkpoint_is_mounted_everywhere(
    service: RayService, deployed: WindroseConfig
) -> None:
    """The head's pod too: Serve builds the application there, which reads all headers."""
    for pod in pods(service).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        (mount,) = container(pod)["volumeMounts"]
        assert deployed.model.startswith(mount["mountPath"] + "/")
        claim = volumes[mount["name"]]["persistentVolumeClaim"]
        assert mount["readOnly"] and claim["readOnly"]
        assert claim["claimName"] == "windrose-models"


def test_pods_run_as_nobody_special(service: RayService) -> None:
    for pod in pods(service).values():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] >= 1000


def test_the_head_s_state_is_in_redis(service: RayService) -> None:
    options = service.spec.rayClusterConfig.gcsFaultToleranceOptions
    assert options is not None and options.redisPassword is not None
    front, behind = documents("redis.yaml")
    host, _, port = options.redisAddress.partition(":")
    assert host == front["metadata"]["name"]
    assert int(port) == front["spec"]["ports"][0]["port"]
    assert front["spec"]["selector"] == behind["spec"]["template"]["metadata"]["labels"]
    redis = container(behind["spec"]["template"])
    assert front["spec"]["ports"][0]["targetPort"] in ports(redis)
    (password,) = [one["valueFrom"] for one in redis["env"] if one["name"] == "REDIS_PASSWORD"]
    assert options.redisPassword.valueFrom is not None
    assert password == options.redisPassword.valueFrom.model_dump(exclude_none=True)
    comment = (FOLDER / "rayservice.yaml").read_text()
    secret = password["secretKeyRef"]
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in comment


def test_a_gpu_has_memory_for_its_share(deployed: WindroseConfig) -> None:
    """Of 8 experts of 32 layers in bf16, as the file places them."""
    expert_bytes = 3 * 4096 * 14336 * 2
    share = math.ceil(8 / deployed.expert_actors) * 32 * expert_bytes
    assert share < 0.9 * 80e9

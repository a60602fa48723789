"""The fields of ray.io/v1 RayService that KubeRay 1.5.1 to 1.7 know, as strict models.

Kubernetes keeps fields that a CRD does not name out of an object without a word, so that a typing
error would be found late. Pod templates are Kubernetes' own and checked elsewhere. From the CRDs
and the validation of ray-project/kuberay, v1.7.0; later fields that we do not use are left out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIN_RAY_WITH_TOKEN = (2, 52, 0)

Strings = dict[str, str]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(_Strict):
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=50)]
    namespace: str | None = None
    labels: Strings = {}
    annotations: Strings = {}


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None


class SecretKey(_Strict):
    name: str
    key: str
    optional: bool | None = None


class ValueSource(_Strict):
    secretKeyRef: SecretKey


class RedisCredential(_Strict):
    value: str | None = None
    valueFrom: ValueSource | None = None


class GcsFaultTolerance(_Strict):
    redisAddress: str
    redisUsername: RedisCredential | None = None
    redisPassword: RedisCredential | None = None
    externalStorageNamespace: str | None = None


class AutoscalerOptions(_Strict):
    version: Literal["v1", "v2"] | None = None
    idleTimeoutSeconds: Count | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    imagePullPolicy: Literal["Always", "Never", "IfNotPresent"] | None = None
    image: str | None = None
    resources: dict[str, Any] | None = None
    env: list[dict[str, Any]] = []


class Group(_Strict):
    """What head and workers have in common."""

    template: dict[str, Any]
    rayStartParams: Strings
    resources: Strings = {}
    labels: Strings = {}

    @model_validator(mode="after")
    def _resources_stand_once(self) -> Self:
        twice = {"num-cpus", "num-gpus", "memory", "resources"} & set(self.rayStartParams)
        if self.resources and twice:
            raise ValueError(f"resources and rayStartParams {sorted(twice)} are both set")
        if "labels" in self.rayStartParams:
            raise ValueError("rayStartParams has labels: use the group's own")
        return self


class HeadGroup(Group):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    enableIngress: bool | None = None


class WorkerGroup(Group):
    groupName: Annotated[str, Field(min_length=1)]
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    numOfHosts: Annotated[int, Field(ge=1)] = 1
    idleTimeoutSeconds: Count | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: replicas not between minReplicas and maxReplicas")
        return self


class RayClusterSpec(_Strict):
    rayVersion: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None

    @model_validator(mode="after")
    def _as_the_operator_asks(self) -> Self:
        version = tuple(int(part) for part in re.findall(r"\d+", self.rayVersion))
        if self.authOptions and self.authOptions.mode == "token" and version < MIN_RAY_WITH_TOKEN:
            raise ValueError(f"authOptions: token needs Ray 2.52, not {self.rayVersion}")
        names = [group.groupName for group in self.workerGroupSpecs]
        if len(set(names)) < len(names):
            raise ValueError(f"two groups of one name in {names}")
        for group in [self.headGroupSpec, *self.workerGroupSpecs]:
            policy = group.template["spec"].get("restartPolicy", "Never")
            if self.enableInTreeAutoscaling and policy != "Never":
                raise ValueError("the autoscaler wants restartPolicy Never or none")
        return self


class UpgradeStrategy(_Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class RayServiceSpec(_Strict):
    serveConfigV2: Annotated[str, Field(min_length=1)]
    rayClusterConfig: RayClusterSpec
    upgradeStrategy: UpgradeStrategy | None = None
    rayClusterDeletionDelaySeconds: Count | None = None
    excludeHeadPodFromServeSvc: bool = False
    serveService: dict[str, Any] | None = None
    suspend: bool = False


class RayService(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec

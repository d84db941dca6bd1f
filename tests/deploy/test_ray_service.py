"""The worker as a RayService: what KubeRay takes, and a pool that fits together.

KubeRay's definitions are in no package, so what stands here is their shape in version 1.7 as far as the chart uses it. Its pods are checked
like all others, against the schemas of Kubernetes.
"""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kvworker.ray.settings import FRONT
from kvworker.serve.config import WorkerConfig
from tests.deploy.rendering import NAMESPACE, RAY_SERVICE, RELEASE, Object, Rendered, render, variant
from tests.deploy.test_chart import KUBERNETES
from tests.deploy.test_chart_config import read
from tests.deploy.test_images import locked
from tests.pool.served import APPLICATION

SPEC = {"rayClusterDeletionDelaySeconds": int, "serveConfigV2": str, "rayClusterConfig": dict}
CLUSTER = {
    "rayVersion": str,
    "authOptions": dict,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
}
HEAD = {"rayStartParams": dict, "template": dict}
GROUP = {**HEAD, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}


@pytest.fixture
def service() -> Rendered:
    """The chart with a pool over two pods of two GPUs."""
    return variant("ray service")


@pytest.fixture
def scaling() -> Rendered:
    """The same with an autoscaler."""
    return render(
        {**RAY_SERVICE, "worker": {**RAY_SERVICE["worker"], "autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 3}}}
    )


def cluster(release: Rendered) -> Object:
    """Return the cluster of a release."""
    return release.workload("worker")["spec"]["rayClusterConfig"]  # type: ignore[no-any-return]


def fits(found: Object, shape: dict[str, type]) -> bool:
    """Tell whether an object has no field that is not in the shape, and those of the right type."""
    return all(name in shape and type(value) is shape[name] for name, value in found.items())


@pytest.mark.parametrize("name", ["service", "scaling"])
def test_kuberay_knows_every_field(name: str, request: pytest.FixtureRequest) -> None:
    """It would refuse another one, or drop it in silence."""
    release = request.getfixturevalue(name)
    workload = release.workload("worker")
    assert (workload["apiVersion"], workload["kind"]) == ("ray.io/v1", "RayService")
    head, (group,) = cluster(release)["headGroupSpec"], cluster(release)["workerGroupSpecs"]
    for found, shape in ((workload["spec"], SPEC), (cluster(release), CLUSTER), (head, HEAD), (group, GROUP)):
        assert fits(found, shape)
    for params in (head["rayStartParams"], group["rayStartParams"]):
        assert {type(value) for value in params.values()} == {str}


@pytest.mark.parametrize("version", KUBERNETES)
def test_its_pods_are_valid_in_three_versions_of_kubernetes(service: Rendered, scaling: Rendered, version: str) -> None:
    """Strictly, as those of a Deployment."""
    for template in (*service.templates("worker"), *scaling.templates("worker")):
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        assert kubernetes_validate.validate(whole, version, strict=True) == version


def test_serve_finds_the_application_and_the_file_that_it_reads(service: Rendered) -> None:
    """By its import path, as Serve does; the file is mounted on every node."""
    (app,) = yaml.safe_load(service.workload("worker")["spec"]["serveConfigV2"])["applications"]
    assert app["import_path"] == APPLICATION
    for pod in service.pods("worker"):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert app["args"] == {"config": f"{mounts['config']}/worker.toml"}


def test_ray_takes_no_calls_without_a_token_and_is_the_one_in_the_image(service: Rendered) -> None:
    """KubeRay refuses tokens where it is not told of a version that knows them."""
    assert cluster(service)["authOptions"] == {"mode": "token"}
    assert cluster(service)["rayVersion"] == locked("worker-ray")["ray"]


def start_resources(group: Object) -> dict[str, float]:
    """Return the resources of a group's nodes as Ray reads them: KubeRay passes the quotes on to a shell."""
    return json.loads(json.loads(group["rayStartParams"]["resources"]))  # type: ignore[no-any-return]


def test_the_front_is_on_the_head_and_each_gpu_has_an_actor(service: Rendered, tmp_path: Any) -> None:
    """Callers reach the head only, and whoever has room for an actor has a GPU for it."""
    head, (group,) = cluster(service)["headGroupSpec"], cluster(service)["workerGroupSpecs"]
    assert start_resources(head) == {FRONT: 1}
    assert start_resources(group) == {"larder-worker": 2}
    config = read(service, "worker", tmp_path)
    assert isinstance(config, WorkerConfig)
    assert (config.ray.workers, config.ray.gpus, config.ray.cpus, dict(config.ray.custom)) == (4, 1.0, 0.0, {"larder-worker": 1.0})
    assert service.of_part("Service", "worker")["spec"]["selector"].items() >= {"ray.io/node-type": "head", "ray.io/serve": "true"}.items()


def test_actors_listen_on_their_pods_and_are_known_by_the_certificate_of_the_service(service: Rendered, tmp_path: Any) -> None:
    """The front is in another pod."""
    ray = read(service, "worker", tmp_path).ray
    assert (ray.host, ray.ca, ray.server_name) == ("", "/etc/larder/tls/ca.crt", f"{RELEASE}-worker.{NAMESPACE}.svc")


def test_what_is_said_of_the_pool_is_not_overruled(tmp_path: Any) -> None:
    """The chart's own numbers are for those who say nothing."""
    own = {"workers": 3, "resources": "other=1", "start_s": 60}
    config = read(render({**RAY_SERVICE, "worker": {**RAY_SERVICE["worker"], "config": {"ray": own}}}), "worker", tmp_path)
    assert (config.ray.workers, config.ray.resources, config.ray.start_s, config.ray.cpus) == (3, "other=1", 60, 1.0)


def test_the_autoscaler_adds_pods_for_the_actors_that_the_pool_asks_for(scaling: Rendered, tmp_path: Any) -> None:
    """There is no HorizontalPodAutoscaler beside it; the head may ask Kubernetes for pods, and nobody else."""
    (group,) = cluster(scaling)["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 3)
    ray = read(scaling, "worker", tmp_path).ray
    assert (ray.workers, ray.most_workers) == (2, 6)
    assert not scaling.of_kind("HorizontalPodAutoscaler")
    assert [pod["automountServiceAccountToken"] for pod in scaling.pods("worker")] == [True, False]
    assert set(cluster(scaling)["autoscalerOptions"]) == {"securityContext", "resources"}
    ports = [port["port"] for rule in scaling.of_part("NetworkPolicy", "worker")["spec"]["egress"] for port in rule.get("ports", [])]
    assert 6443 in ports


def test_rays_ports_are_open_to_the_pool_and_two_of_them_to_the_operator(service: Rendered) -> None:
    """Who reaches the others runs code; callers reach the front."""
    labels = service.templates("worker")[0]["metadata"]["labels"]
    policy = service.of_part("NetworkPolicy", "worker")["spec"]
    (everything,) = [rule for rule in policy["ingress"] if "ports" not in rule]
    assert len(everything["from"]) == 1
    assert everything["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    (operator,) = [rule for rule in policy["ingress"] if {port["port"] for port in rule.get("ports", [])} == {8000, 8265}]
    assert operator["from"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    callers = [{port["port"] for port in rule["ports"]} for rule in policy["ingress"] if "ports" in rule and rule is not operator]
    assert callers == [{7421}]

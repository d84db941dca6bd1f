"""What the chart renders: objects that Kubernetes takes, and that fit together."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.rendering import (
    CHART,
    EVERYTHING,
    NAMESPACE,
    VARIANTS,
    Object,
    Rendered,
    Values,
    containers,
    render,
    run_helm,
    variant,
)  # fmt: skip

CATALOG = {"catalog": {"existingSecret": "catalog-url"}}
KUBERNETES = ("1.32", "1.35", "1.37")
CUSTOM = {"ServiceMonitor", "RayService"}  # no part of Kubernetes; test_observability.py and test_ray_service.py look at them


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid_in_three_versions_of_kubernetes(rendered: Rendered, version: str) -> None:
    """Strictly: a field that the API does not know would be dropped in silence."""
    for each in rendered.objects:
        if each["kind"] not in CUSTOM:
            assert valid_in(version, json.dumps(each)) == version


@cache
def valid_in(version: str, spelled: str) -> str:
    """Return the version that takes an object; releases have many in common, and each takes some time."""
    taken: str = kubernetes_validate.validate(json.loads(spelled), version, strict=True)
    return taken


def test_the_validation_refuses_an_unknown_field() -> None:
    """A validator that takes everything would prove nothing."""
    wrong = copy.deepcopy(variant("defaults").workload("store"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readyProbe"):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


def test_helm_finds_nothing_to_complain_about() -> None:
    """Its linter reads the chart as an operator's tools will."""
    done = run_helm("lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"worker": {"replcas": 2}},
        {"store": {"config": {"tiers": {"memory": {"capacty": "1GiB"}}}}},
        {"store": {"config": {"server": {"address": "0.0.0.0:1"}}}},
        {"store": {"config": {"tiers": {"memory": {"capacity": "much"}}}}},
        {"store": {"config": {"server": {"max_workers": 0}}}},
        {"worker": {"dataClaim": "one", "replicas": 2}},
        {"store": {"replicas": 0}},
        {"worker": {"config": {"store": {"replicas": 2}}}},
        {"store": {"replicas": 3}, "worker": {"config": {"store": {"replicas": 3}}}},
        {"catalog": {"url": "redis://:password@host"}},
        {"worker": {"dataClaim": "one", "autoscaling": {"enabled": True}}},
        {"worker": {"config": {"ray": {"workers": 2}}}},
        {"worker": {"ray": {"enabled": True}}, "networkPolicy": {"enabled": False}},
        {"worker": {"ray": {"enabled": True}, "config": {"ray": {"host": "0.0.0.0"}}}},
        {"worker": {"kind": "StatefulSet"}},
        {"worker": {"kind": "RayService"}},
        {"worker": {"kind": "RayService"}, **CATALOG, "networkPolicy": {"enabled": False}},
        {"worker": {"kind": "RayService", "replicas": 0}, **CATALOG},
        {"worker": {"kind": "RayService", "ray": {"enabled": True}}, **CATALOG},
        {"worker": {"kind": "RayService", "dataClaim": "one"}, **CATALOG},
        {"worker": {"kind": "RayService", "rayService": {"operator": []}}, **CATALOG},
        {"worker": {"kind": "RayService", "autoscaling": {"enabled": True, "requestsRunning": 4}}, **CATALOG},
        {"image": {"store": {"repository": "r", "digest": "latest"}}},
        {"networkPolicy": {"clients": [{}]}},
        {"auth": {"existingSecret": ""}},
        {"auth": {"jwks": {"configMap": "keys"}}},
        {"tls": {"clientCertificate": True}},
        {"encryption": {"keys": "first 00"}},
        {"store": {"config": {"quotas": {"stored": -1}}}},
        {"redis": {"url": "redis://:password@host"}},
        {"tracing": {"endpoint": "collector:4317"}},
    ],
    ids=json.dumps,
)
def test_values_that_mean_nothing_are_refused_by_the_schema(wrong: Values) -> None:
    """A typo would otherwise leave a default in force that nobody wanted."""
    with pytest.raises(AssertionError, match="don't meet the specifications"):
        render(wrong)


def test_no_part_of_the_schema_takes_unknown_keys() -> None:
    """Only labels, amounts, and `global`, which Helm itself passes down, have keys of their own choice."""
    open_ended = _open_objects(json.loads((CHART / "values.schema.json").read_text()))
    assert open_ended == {".properties.global", ".definitions.labels", ".definitions.amounts"}


def _open_objects(schema: Any, path: str = "") -> set[str]:
    """Return where a schema describes objects whose keys are free."""
    is_open = isinstance(schema, dict) and schema.get("type") == "object" and schema.get("additionalProperties") is not False
    found = {path} if is_open else set()
    children = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    return found.union(*(_open_objects(child, f"{path}.{name}") for name, child in children))


def test_no_container_may_do_what_it_does_not_need(rendered: Rendered) -> None:
    """The restricted level of Kubernetes' pod security standards, and a root file system that nobody writes."""
    for pod in [pod for part in rendered.parts for pod in rendered.pods(part)]:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in containers(pod):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip


def test_every_container_says_what_it_needs(rendered: Rendered) -> None:
    """Without a memory limit a node runs out before its scheduler knows."""
    for pod in [pod for part in rendered.parts for pod in rendered.pods(part)]:
        for each in containers(pod):
            assert each["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in each["resources"]["limits"]


def test_every_mount_has_its_volume_and_every_volume_its_mount(rendered: Rendered) -> None:
    """The API checks neither way until a pod starts."""
    for part in rendered.parts:
        claims = rendered.workload(part)["spec"].get("volumeClaimTemplates", [])
        for pod in rendered.pods(part):
            mounted = {mount["name"] for each in containers(pod) for mount in each["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}


def test_everything_that_selects_pods_finds_them(rendered: Rendered) -> None:
    """A service, budget or policy whose labels match nothing is accepted and does nothing."""
    for part in rendered.parts:
        budget, service = rendered.of_part("PodDisruptionBudget", part), rendered.of_part("Service", part)
        selectors = [budget["spec"]["selector"]["matchLabels"], _of_ours(service["spec"]["selector"])]
        if "selector" in rendered.workload(part)["spec"]:
            selectors.append(rendered.workload(part)["spec"]["selector"]["matchLabels"])
        if rendered.of_kind("NetworkPolicy"):
            selectors.append(rendered.of_part("NetworkPolicy", part)["spec"]["podSelector"]["matchLabels"])
        for template in rendered.templates(part):
            assert all(selector.items() <= template["metadata"]["labels"].items() for selector in selectors)


def _of_ours(labels: dict[str, str]) -> dict[str, str]:
    """Return labels but for those that KubeRay puts on pods."""
    return {name: value for name, value in labels.items() if not name.startswith("ray.io/")}


def test_services_lead_to_ports_that_containers_open(rendered: Rendered) -> None:
    """By name, as a renamed port would otherwise lead nowhere."""
    for part in rendered.parts:
        opened = {port["name"]: port["containerPort"] for port in rendered.container(part)["ports"]}
        ports = rendered.of_part("Service", part)["spec"]["ports"]
        assert {port["targetPort"]: port["port"] for port in ports}.items() <= opened.items()


def test_a_pod_has_time_to_leave_drain_and_flush(rendered: Rendered) -> None:
    """Killed earlier, acknowledged chunks that wait for the disk would be lost. 42 s: what the store may take after its drain."""
    for part, after_s in (("store", 42), ("worker", 60)):
        if part in rendered.parts:
            leaving_s = rendered.container(part)["lifecycle"]["preStop"]["sleep"]["seconds"]
            draining_s = rendered.config(part)["server"]["drain_s"] * (2 if "ray" in rendered.config(part) else 1)
            assert rendered.pod(part)["terminationGracePeriodSeconds"] >= leaving_s + draining_s + after_s


def test_the_policies_let_workers_reach_the_store_and_nobody_unnamed() -> None:
    """Both ways: what the worker may send, the store must take."""
    release = variant("defaults")
    store, worker = (release.of_part("NetworkPolicy", part)["spec"] for part in ("store", "worker"))
    ports = {port["port"] for port in store["ingress"][0]["ports"]}
    assert ports == {7420, 7422} == {port["port"] for port in worker["egress"][1]["ports"]}
    labels = release.workload("worker")["spec"]["template"]["metadata"]["labels"]
    assert store["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    assert len(store["ingress"][0]["from"]) == 2


@pytest.mark.parametrize(("name", "egress_ports"), [("defaults", set()), ("external redis", {53, 6379}), ("everything", {53, 6380, 4318})])
def test_the_store_may_call_redis_and_the_collector_and_nothing_else(name: str, egress_ports: set[int]) -> None:
    """Without Redis it calls nobody, names included."""
    rules = variant(name).of_part("NetworkPolicy", "store")["spec"]["egress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == egress_ports


def test_spans_are_sent_where_the_values_say_and_else_nowhere(rendered: Rendered) -> None:
    """By OpenTelemetry's own variable, from stores and workers, which may both call the collector."""
    endpoints = {
        (part, variable["value"])
        for part in rendered.parts
        for pod in rendered.pods(part)
        for variable in pod["containers"][0].get("env", [])
        if variable["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT"
    }
    is_on = rendered == variant("everything")
    assert endpoints == ({(part, "http://collector.observability:4318") for part in ("store", "worker")} if is_on else set())
    for part in rendered.parts if is_on else []:
        rules = rendered.of_part("NetworkPolicy", part)["spec"]["egress"]
        assert {"ports": [{"protocol": "TCP", "port": 4318}]} in rules


def test_no_clients_means_nobody_may_call_workers() -> None:
    """An empty list of peers in a rule would mean everybody."""
    assert variant("one worker with data").of_part("NetworkPolicy", "worker")["spec"]["ingress"] == []


def test_credentials_come_from_secrets_by_name_and_only_the_store_gets_the_master_secret(rendered: Rendered) -> None:
    """A worker holds tokens; with the master secret it could derive every tenant's storage keys."""
    for part in rendered.parts:
        for pod in rendered.pods(part):
            (auth,) = [volume["projected"] for volume in pod["volumes"] if volume["name"] == "auth"]
            names = ["tokens", "secret"] if part == "store" else ["tokens"]
            assert [item["key"] for item in auth["sources"][0]["secret"]["items"]] == names
    assert not rendered.of_kind("Secret")


def test_the_redis_url_is_nowhere_but_in_its_secret() -> None:
    """It holds the password."""
    (variable,) = variant("external redis").container("store")["env"]
    assert variable == {
        "name": "LARDER_STORE__TIERS__REDIS__URL",
        "valueFrom": {"secretKeyRef": {"name": "cache-url", "key": "url"}},
    }
    assert "url" not in variant("external redis").config("store")["tiers"]["redis"]


@pytest.mark.parametrize("part", ["store", "worker"])
def test_health_is_asked_over_grpc_where_the_kubelet_can(part: str) -> None:
    """The kubelet's own probe speaks no TLS."""
    container = variant("external redis").container(part)
    port = container["ports"][0]["containerPort"]
    assert all(container[probe]["grpc"] == {"port": port} for probe in ("startupProbe", "readinessProbe", "livenessProbe"))


@pytest.mark.parametrize("part", ["store", "worker"])
def test_health_is_asked_under_the_name_that_clients_use_where_there_is_tls(part: str) -> None:
    """The certificate names the service, not 127.0.0.1."""
    command = variant("everything").container(part)["readinessProbe"]["exec"]["command"]
    assert f"--server-name=kv-{part}.{NAMESPACE}.svc" in command
    assert variant("everything").config("worker")["store"]["address"] == f"kv-store.{NAMESPACE}.svc:7420"


def test_workers_find_several_stores_by_the_name_that_stands_for_all_of_them() -> None:
    """A headless service resolves to the pods that are ready, and so to those that may be asked."""
    release = variant("several")
    service = release.of_part("Service", "store")
    assert service["spec"]["clusterIP"] == "None"
    assert release.workload("store")["spec"]["replicas"] == 3
    assert release.workload("store")["spec"]["serviceName"] == service["metadata"]["name"]
    host = f"{service['metadata']['name']}.{NAMESPACE}.svc"
    assert release.config("worker")["store"] == {"address": f"dns:{host}:7420", "ca": "/etc/larder/tls/ca.crt", "replicas": 2}


def test_several_stores_are_spread_over_zones_and_nodes() -> None:
    """Or one node takes all of them with it; one store has nothing to be spread over."""
    (zone, _) = variant("several").pod("store")["topologySpreadConstraints"]
    labels = variant("several").workload("store")["spec"]["template"]["metadata"]["labels"]
    assert zone["labelSelector"]["matchLabels"].items() <= labels.items()
    assert "topologySpreadConstraints" not in variant("defaults").pod("store")


def test_workers_with_one_catalog_need_no_client_to_come_back_to_the_same_one() -> None:
    """Each answers for what any of them ingested; they may call the Redis that holds it."""
    release = variant("several")
    (variable,) = release.container("worker")["env"]
    assert variable["name"] == "LARDER_WORKER__WORKER__CATALOG_URL"
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "catalog-url", "key": "url"}
    assert "sessionAffinity" not in release.of_part("Service", "worker")["spec"]
    assert release.of_part("NetworkPolicy", "worker")["spec"]["egress"][2] == {"ports": [{"protocol": "TCP", "port": 6379}]}
    assert variant("defaults").of_part("Service", "worker")["spec"]["sessionAffinity"] == "ClientIP"


def test_an_autoscaler_and_a_deployment_do_not_both_say_how_many() -> None:
    """Each upgrade would reset what the autoscaler chose."""
    release = variant("everything")
    assert "replicas" not in release.workload("worker")["spec"]
    assert release.of_kind("HorizontalPodAutoscaler")[0]["spec"]["scaleTargetRef"]["name"] == release.workload("worker")["metadata"]["name"]


def test_a_worker_with_gpus_asks_for_them_and_takes_nothing_less() -> None:
    """Without device = "cuda" a worker whose GPU is missing would serve from the CPU, slowly."""
    release = variant("everything")
    assert release.container("worker")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert release.config("worker")["model"]["device"] == "cuda"


def test_a_pod_on_ray_starts_one_of_its_own_with_memory_for_it() -> None:
    """A container's own /dev/shm has 64 MiB, less than Ray takes; other pods run as before."""
    for name, words in (("on ray", ["worker", "--ray", "--config"]), ("several", ["worker", "--config"])):
        container = variant(name).container("worker")
        assert container["args"] == [*words, "/etc/larder/config/worker.toml"]
        assert ("/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}) == ("--ray" in words)
    (shm,) = [volume["emptyDir"] for volume in variant("on ray").pod("worker")["volumes"] if volume["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "256Mi"}


def test_a_catalog_on_a_claim_has_one_writer() -> None:
    """A rolling update would start the second before the first has stopped."""
    assert variant("one worker with data").workload("worker")["spec"]["strategy"] == {"type": "Recreate"}


def test_another_configuration_restarts_the_pods_and_the_same_does_not() -> None:
    """Pods read their configuration at start only."""
    seen: list[Object] = [
        render({"store": {"config": {"tiers": {"disk": {"fsync": mode}}}}}).workload("store") for mode in ("always", "never")
    ]
    sums = [each["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for each in seen]
    assert sums[0] != sums[1]
    assert render({}).objects == variant("defaults").objects


def test_the_variants_cover_every_kind_of_object() -> None:
    """What is rendered by no variant is validated by no test."""
    kinds = {each["kind"] for name in VARIANTS for each in variant(name).objects}
    written = {
        line.split()[1]
        for path in (CHART / "templates").glob("*.yaml")
        for line in path.read_text().splitlines()
        if line.startswith("kind:")
    }
    assert kinds == written
    assert EVERYTHING["worker"]["autoscaling"]["enabled"]

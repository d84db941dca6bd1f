"""The chart as the real Helm renders it, and what is in its objects."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.architecture.source import ROOT

CHART = ROOT / "deploy" / "chart"
RELEASE, NAMESPACE = "pantry", "models"
Object = dict[str, Any]
Values = Mapping[str, Any]
WORKLOADS = {"store": ("StatefulSet",), "worker": ("Deployment", "RayService")}

EXTERNAL_REDIS: Values = {
    "tls": {"enabled": False},
    "redis": {"existingSecret": "cache-url", "caSecret": "cache-ca"},
    "store": {"config": {"tiers": {"redis": {"timeout_s": 0.25, "ttl_s": 86400, "connections": 8}}}},
}
EVERYTHING: Values = {
    **EXTERNAL_REDIS,
    "nameOverride": "kv",
    "tls": {"enabled": True, "existingSecret": "kv-certificate", "clientCertificates": True},
    "auth": {"jwks": {"configMap": "issuer-keys", "issuer": "https://issuer.example.test", "audience": "larder"}},
    "encryption": {"existingSecret": "kv-keys"},
    "image": {"store": {"repository": "example.test/store", "digest": "sha256:" + "0" * 64}, "pullSecrets": ["pull"]},
    "store": {
        "config": {"server": {"max_workers": 32, "drain_s": 12.5, "lanes": {"tcp": True, "max_connections": 64}}},
        "persistence": {"size": "2Ti", "storageClass": "fast"},
        "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "storage", "operator": "Exists", "effect": "NoSchedule"}],
        "podAnnotations": {"example.test/owner": "cache"},
        "priorityClassName": "high",
    },
    "worker": {
        "config": {"model": {"directory": "/models/m", "dtype": "bfloat16"}, "worker": {"codec": "int8", "quality_budget": 0.02}},
        "modelClaim": "models",
        "tokenSecret": "worker-token",
        "gpu": {"count": 1, "runtimeClassName": "nvidia"},
        "autoscaling": {"enabled": True, "maxReplicas": 8, "requestsRunning": 4, "passagesComputedPerSecond": 9},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
    "tracing": {"endpoint": "http://collector.observability:4318", "port": 4318},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "rag"}}}],
        "scrapers": [{"namespaceSelector": {"matchLabels": {"team": "metrics"}}}],
        "redisPort": 6380,
    },
}
ONE_WORKER_WITH_DATA: Values = {"worker": {"dataClaim": "catalog", "podAnnotations": {"a": "b"}}, "networkPolicy": {"clients": []}}
SEVERAL: Values = {
    "catalog": {"existingSecret": "catalog-url"},
    "store": {"replicas": 3},
    "worker": {"replicas": 2, "config": {"store": {"replicas": 2}}},
}
ON_RAY: Values = {
    "tls": {"enabled": True, "existingSecret": "kv-certificate", "clientCertificates": True},
    "redis": {"existingSecret": "cache-url", "allowPlaintext": True},
    "catalog": {"existingSecret": "catalog-url"},
    "worker": {
        "ray": {"enabled": True},
        "config": {"server": {"drain_s": 20}, "ray": {"workers": 4, "waiting_per_worker": 2.5}},
        "gpu": {"count": 4},
    },
}
RAY_SERVICE: Values = {
    "catalog": {"existingSecret": "catalog-url"},
    "worker": {"kind": "RayService", "replicas": 2, "modelClaim": "models", "gpu": {"count": 2}, "config": {"server": {"drain_s": 20}}},
}
STORE_ALONE: Values = {"worker": {"enabled": False}, "networkPolicy": {"enabled": False}, "metrics": {"enabled": False}}
VARIANTS: Mapping[str, Values] = {
    "defaults": {},
    "external redis": EXTERNAL_REDIS,
    "everything": EVERYTHING,
    "one worker with data": ONE_WORKER_WITH_DATA,
    "several": SEVERAL,
    "on ray": ON_RAY,
    "ray service": RAY_SERVICE,
    "store alone": STORE_ALONE,
}


@dataclass(frozen=True)
class Rendered:
    """The objects of one release."""

    objects: tuple[Object, ...]

    def of_kind(self, kind: str) -> list[Object]:
        """Return the objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def of_part(self, kind: str, part: str) -> Object:
        """Return the one object of a kind that belongs to "store" or "worker"."""
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["labels"]["app.kubernetes.io/component"] == part]
        return found

    def workload(self, part: str) -> Object:
        """Return the StatefulSet, Deployment or RayService of a part."""
        return self.of_part(next(kind for kind in WORKLOADS[part] if self.of_kind(kind)), part)

    def templates(self, part: str) -> list[Object]:
        """Return the templates of a part's pods, the one that callers reach first."""
        spec = self.workload(part)["spec"]
        if "rayClusterConfig" not in spec:
            return [spec["template"]]
        groups = [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]
        return [group["template"] for group in groups]

    def pods(self, part: str) -> list[Object]:
        """Return the pod specs of a part."""
        return [template["spec"] for template in self.templates(part)]

    def pod(self, part: str) -> Object:
        """Return the spec of the pods that callers reach."""
        return self.pods(part)[0]

    def container(self, part: str) -> Object:
        """Return the container that serves."""
        return self.pod(part)["containers"][0]

    def config_text(self, part: str) -> str:
        """Return the TOML of a part."""
        return self.of_part("ConfigMap", part)["data"][f"{part}.toml"]

    def config(self, part: str) -> Object:
        """Return the TOML of a part, read."""
        return tomllib.loads(self.config_text(part))

    @property
    def parts(self) -> list[str]:
        """The parts that run."""
        return [part for part, kinds in WORKLOADS.items() if any(map(self.of_kind, kinds))]


@cache
def variant(name: str) -> Rendered:
    """Return the release of one of the VARIANTS."""
    return render(VARIANTS[name])


def render(values: Values) -> Rendered:
    """Render the chart; raises AssertionError with what Helm says where it refuses."""
    done = run_helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", "-", input_text=json.dumps(values))
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(each for each in yaml.safe_load_all(done.stdout) if each))


def run_helm(*arguments: str, input_text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the Helm that `make test` installs beside Python, else that of this machine."""
    beside = Path(sys.executable).with_name("helm")
    helm = str(beside) if beside.exists() else shutil.which("helm")
    assert helm, "helm is missing: run `make .venv/bin/helm`, or install it"
    return subprocess.run([helm, *arguments], input=input_text, capture_output=True, text=True, timeout=60, check=False)


def containers(pod: Object) -> Iterator[Object]:
    """Iterate over all containers of a pod, those that prepare it included."""
    yield from (*pod["initContainers"], *pod["containers"])

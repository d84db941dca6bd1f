"""What watches Larder names what Larder exports: dashboard, alerts, their runbook, and the chart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvstore.server.observe import names
from kvstore.server.observe.families import HISTOGRAM, Metric
from kvworker.serve.worker_source import WORKER_METRICS
from tests.deploy.rendering import VARIANTS, variant

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "deploy" / "observability"
METRICS: tuple[Metric, ...] = (*names.SERVER_METRICS, *names.STORE_METRICS, *WORKER_METRICS)
_NAME = re.compile(r"\b(larder_[a-z_]+)\b")
_SELECTION = re.compile(r"\b(larder_[a-z_]+)\{([^}]*)\}")
_LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
_OF_SCRAPES = {"job", "instance", "le"}


def exported() -> dict[str, Metric]:
    """Return every name that a query may use."""
    known = {metric.name: metric for metric in METRICS if metric.kind != HISTOGRAM}
    parts = [(f"{metric.name}_{part}", metric) for metric in METRICS if metric.kind == HISTOGRAM for part in ("bucket", "sum", "count")]
    return known | dict(parts)


def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    groups = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query of dashboard and alerts, with the name of its panel or alert."""
    for panel in panels():
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((rule["alert"], rule["expr"]) for rule in rules())


@pytest.mark.parametrize(("title", "query"), list(queries()), ids=lambda text: text[:30])
def test_a_query_names_metrics_and_labels_that_are_exported(title: str, query: str) -> None:
    """A typo shows an empty panel for ever, or an alert that never fires."""
    known = exported()
    assert set(_NAME.findall(query)) <= set(known)
    for name, selection in _SELECTION.findall(query):
        assert set(_LABEL.findall(selection)) <= {*known[name].labels, *_OF_SCRAPES}, name


@pytest.mark.parametrize(("title", "query"), list(queries()), ids=lambda text: text[:30])
def test_the_brackets_of_a_query_match(title: str, query: str) -> None:
    """Nothing here parses PromQL; this much can be seen without."""
    opened = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for character in re.sub(r'"[^"]*"', "", query):
        if character in pairs.values():
            opened.append(character)
        elif character in pairs:
            assert opened.pop() == pairs[character]
    assert not opened


def test_every_metric_is_on_the_dashboard_or_says_who_runs() -> None:
    """What nobody looks at need not be exported."""
    shown = {name for panel in panels() for target in panel["targets"] for name in _NAME.findall(target["expr"])}
    known = exported()
    unseen = {metric.name for metric in METRICS} - {known[name].name for name in shown}
    assert unseen <= {"larder_process_info", "larder_write_queue_limit_bytes"}


def test_every_alert_has_its_line_in_the_runbook() -> None:
    """Whoever is woken needs to know what to do; the anchor is what the alert's link leads to."""
    text = (ROOT / "docs" / "operations.md").read_text()
    anchors = dict(re.findall(r'^\| <a id="([a-z]+)"></a>(\w+) \|', text, re.M))
    assert {name.lower(): name for name in anchors.values()} == anchors
    assert sorted(anchors.values()) == sorted(rule["alert"] for rule in rules())
    assert all(rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}" for rule in rules())


def test_every_alert_says_what_happened_and_how_bad_it_is() -> None:
    """In the words that reach a pager."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert len(rule["annotations"]["summary"]) > 20


def test_panels_do_not_overlap() -> None:
    """Grafana would move them."""
    seen: set[tuple[int, int]] = set()
    for panel in json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & seen
        assert max(x for x, _ in cells) < 24
        seen |= cells


@pytest.mark.parametrize("name", VARIANTS)
def test_the_chart_scrapes_the_port_that_serves(name: str) -> None:
    """Where there is a monitor at all."""
    release = variant(name)
    for monitor in release.of_kind("ServiceMonitor"):
        part = monitor["metadata"]["labels"]["app.kubernetes.io/component"]
        ports = {port["name"]: port["port"] for port in release.of_part("Service", part)["spec"]["ports"]}
        (endpoint,) = monitor["spec"]["endpoints"]
        assert release.config(part)["server"]["metrics_address"] == f"0.0.0.0:{ports[endpoint['port']]}"
        labels = release.of_part("Service", part)["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert ("tls" in release.config(part)["server"]) == (endpoint["scheme"] == "https")


def test_monitors_have_no_field_that_their_operator_does_not_know() -> None:
    """Their schema is not at hand, so the fields are those of its documentation (monitoring.coreos.com/v1)."""
    monitors = variant("everything").of_kind("ServiceMonitor")
    assert len(monitors) == 2
    for monitor in monitors:
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(monitor["spec"]) == {"selector", "endpoints"}
        (endpoint,) = monitor["spec"]["endpoints"]
        assert set(endpoint) == {"port", "path", "interval", "scheme", "tlsConfig"}
        assert set(endpoint["tlsConfig"]) == {"serverName", "ca"}
        assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_only_scrapers_that_are_named_reach_the_port() -> None:
    """Metrics name tenants."""
    for part in ("store", "worker"):
        rules = {name: variant(name).of_part("NetworkPolicy", part)["spec"]["ingress"] for name in ("defaults", "everything")}
        opened = {name: [rule for rule in found if {"protocol": "TCP", "port": 7430} in rule["ports"]] for name, found in rules.items()}
        assert opened["defaults"] == []
        assert opened["everything"][0]["from"] == [{"namespaceSelector": {"matchLabels": {"team": "metrics"}}}]


def test_the_autoscaler_asks_for_metrics_that_the_adapter_offers() -> None:
    """Which it makes of those that workers have, with their labels."""
    offered = yaml.safe_load((OBSERVABILITY / "adapter.yaml").read_text())["rules"]
    scalers = [scaler for name in VARIANTS for scaler in variant(name).of_kind("HorizontalPodAutoscaler")]
    asked = [metric["pods"]["metric"]["name"] for scaler in scalers for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods"]
    assert sorted(asked) == sorted(rule["name"]["as"] for rule in offered)
    for rule in offered:
        name, _, _ = rule["seriesQuery"].partition("{")
        labels = set(_LABEL.findall(rule["seriesQuery"] + rule["metricsQuery"].partition("{")[2].partition("}")[0]))
        assert labels <= {*exported()[name].labels, "namespace", "pod"}

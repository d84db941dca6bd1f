"""What is exported, and the values of one scrape."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
OTHER = "other"


@dataclass(frozen=True)
class Metric:
    """One metric: its name as it is queried, its kind, what it says, and its labels.

    A counter's name ends in `_total`; a histogram is queried as `<name>_bucket`, `<name>_sum` and `<name>_count`.
    """

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


class Distribution(Protocol):
    """Values counted by bounds, such as a `kvstore.core.histogram.Histogram`."""

    bounds: tuple[float, ...]

    def snapshot(self) -> tuple[list[int], float]:
        """Return how many values were at most each bound, all of them last, and their sum."""
        ...


class Names:
    """Bounds the values of a label: the first `most` keep their names, any later one is called "other". Thread-safe.

    A name that was given once stays, so that no counter ever falls.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """Return what to call a name."""
        with self._lock:
            if name not in self._known and len(self._known) < self._most:
                self._known.add(name)
            return name if name in self._known else OTHER


class Families:
    """The values of one scrape; what is added twice under equal labels is summed."""

    def __init__(self) -> None:
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], Distribution]] = {}

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value of a counter or gauge."""
        values = self._values.setdefault(metric, {})
        values[labels] = values.get(labels, 0.0) + value

    def add_histogram(self, metric: Metric, histogram: Distribution, *labels: str) -> None:
        """Add a histogram; there is one for each set of labels."""
        self._histograms.setdefault(metric, {})[labels] = histogram

    def values(self, metric: Metric) -> dict[tuple[str, ...], float]:
        """Return what was added of a counter or gauge, by labels."""
        return dict(self._values.get(metric, {}))

    def export(self) -> Iterator[Family]:
        """Yield everything as Prometheus' own client writes it."""
        for metric, values in self._values.items():
            kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            family = kind(metric.name.removesuffix("_total"), metric.text, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family
        for metric, histograms in self._histograms.items():
            yield _histogram(metric, histograms)


def _histogram(metric: Metric, histograms: dict[tuple[str, ...], Distribution]) -> HistogramMetricFamily:
    """Return one family of histograms."""
    family = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, histogram in histograms.items():
        counts, total = histogram.snapshot()
        bounds = [*map(repr, histogram.bounds), "+Inf"]
        family.add_metric(labels, _buckets(bounds, counts), total)
    return family


def _buckets(bounds: Sequence[str], counts: Sequence[int]) -> list[tuple[str, float]]:
    return [(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)]

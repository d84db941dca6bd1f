"""Metrics as they are exported."""

from __future__ import annotations

import pytest

from kvstore.core.histogram import Histogram
from kvstore.server.observe.families import COUNTER, GAUGE, HISTOGRAM, Families, Metric, Names
from kvstore.server.observe.history import EVERY_S, KEPT, History

CALLS = Metric("things_total", COUNTER, "Things.", ("kind",))
LEVEL = Metric("level", GAUGE, "A level.")
TIMES = Metric("times", HISTOGRAM, "Times.")


def test_equal_labels_are_summed() -> None:
    """Tenants that share the label "other" count together."""
    out = Families()
    out.add(CALLS, 1, "a")
    out.add(CALLS, 2, "a")
    out.add(LEVEL, 7)
    exported = {(s.name, *s.labels.values()): s.value for family in out.export() for s in family.samples}
    assert exported == {("things_total", "a"): 3, ("level",): 7}


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    """The bound itself included, as Prometheus reads it."""
    times, out = Histogram((1.0, 2.0)), Families()
    for value in (0.5, 1.0, 1.5, 99.0):
        times.add(value)
    out.add_histogram(TIMES, times)
    exported = {(s.name, *s.labels.values()): s.value for family in out.export() for s in family.samples}
    assert exported == {
        ("times_bucket", "1.0"): 2, ("times_bucket", "2.0"): 3, ("times_bucket", "+Inf"): 4, ("times_count",): 4, ("times_sum",): 102.0,
    }  # fmt: skip


@pytest.mark.parametrize(("share", "bound"), [(0.5, 1.0), (0.75, 2.0), (1.0, 2.0)])
def test_a_quantile_is_the_bound_that_a_share_did_not_exceed(share: float, bound: float) -> None:
    """Values above the last bound count as that."""
    times = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        times.add(value)
    assert times.quantile(share) == bound


def test_a_histogram_without_values_has_no_quantile() -> None:
    """0 is shown as none."""
    assert Histogram().quantile(0.5) == 0.0


def test_a_name_keeps_its_label_for_ever() -> None:
    """A counter that moved from a name to "other" would fall, which Prometheus takes for a restart."""
    names = Names(2)
    assert [names.label(name) for name in ("a", "b", "c", "a", "c")] == ["a", "b", "other", "a", "other"]


def test_history_keeps_an_hour_of_growth() -> None:
    """A step for each ten seconds, and one for the time since."""
    clock, total = [0.0], [0.0]
    history = History(lambda: {"n": total[0]}, lambda: clock[0])
    for _ in range(2 * KEPT):
        clock[0] += EVERY_S
        total[0] += 5
        history.tick()
    clock[0] += 3
    steps = history.growth()
    assert len(steps) == KEPT + 1
    assert {step["n"] for step in steps[:-1]} == {5}
    assert steps[-1] == {"at_s": clock[0], "seconds": 3, "n": 0}


def test_history_takes_no_sample_before_its_time() -> None:
    """However often it ticks."""
    history = History(lambda: {"n": 1.0}, lambda: 1.0)
    for _ in range(10):
        history.tick()
    assert len(history.growth()) == 1

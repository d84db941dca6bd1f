"""The page that compares us with other systems: what is read, what is judged and what is said when a number is missing."""

from __future__ import annotations

import json

import pytest

from bench.peers.report import BARS, JUDGED, MIB, OURS, Bar, LatencyBar, Point, Results, medians, milliseconds, page, read_peer, read_rows


def point(peer: str, op: str, nbytes: int, p50_us: float) -> Point:
    """Return a point whose throughput follows from its median time."""
    return Point(peer, op, nbytes, nbytes / p50_us, p50_us, 2 * p50_us, 0.25)


def results(ours_us: float, theirs_us: float) -> Results:
    """Return one round in which every path of ours takes one time and every path of a peer another."""
    sizes = (MIB, *JUDGED)
    ours = {(OURS, bar.ours) for bar in BARS}
    theirs = {(bar.peer, bar.op) for bar in BARS}
    return Results(rounds=[[point(*path, n, us) for paths, us in ((ours, ours_us), (theirs, theirs_us)) for path in paths for n in sizes]])


def line_of(text: str, start: str) -> str:
    """Return the only line that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_a_peers_chatter_is_not_a_measurement() -> None:
    """Servers and libraries print to the same output."""
    measured = point("LMCache", "get", MIB, 300.0)
    lines = ["starting", json.dumps({"peer": "LMCache", "versions": "lmcache 0.5.6"}), json.dumps(vars(measured)), "{}"]
    assert read_peer(lines) == ([measured], {"LMCache": "lmcache 0.5.6"})


def test_our_rows_become_one_point_per_variant_and_size() -> None:
    """The benchmark prints one metric per row, and more metrics than the page shows."""
    figures = {"mb_per_s": 5000.0, "p50_us": 1600.0, "p99_us": 1800.0, "cpu_s_per_gb": 0.25, "over_socket": 0.95}
    rows = [json.dumps({"variant": "tcp.get", "x": 8 * MIB, "metric": name, "p50": value}) for name, value in figures.items()]
    assert read_rows(rows) == [Point(OURS, "tcp.get", 8 * MIB, 5000.0, 1600.0, 1800.0, 0.25)]


def test_a_figure_is_the_median_of_its_rounds() -> None:
    """One disturbed round must not decide."""
    rounds = [[point("Ray", "view", MIB, us)] for us in (50.0, 900.0, 60.0)]
    assert medians(rounds)["Ray", "view", MIB].p50_us == 60.0


def test_a_peer_that_failed_in_one_round_keeps_the_others() -> None:
    """A median over what there is says more than nothing."""
    rounds = [[point("Ray", "view", MIB, 50.0)], [], [point("Ray", "view", MIB, 60.0)]]
    assert medians(rounds)["Ray", "view", MIB].p50_us == 55.0


@pytest.mark.parametrize(("ours_us", "is_met"), [(99.0, True), (100.0, True), (101.0, False)])
def test_a_bar_on_speed_is_a_least_ratio(ours_us: float, is_met: bool) -> None:
    """4 x is met by a quarter of the peer's time and by less."""
    bar = Bar("tcp.get", "redis-py", "get", {MIB: 4.0})
    ratio = bar.ratio(point(OURS, "tcp.get", MIB, ours_us), point("redis-py", "get", MIB, 400.0))
    assert bar.is_met(ratio, MIB) is is_met


@pytest.mark.parametrize(("ours_us", "is_met"), [(24.0, True), (25.0, True), (26.0, False)])
def test_a_bar_on_a_view_is_a_greatest_share(ours_us: float, is_met: bool) -> None:
    """0.5 x is met by half of the peer's time and by less."""
    bar = LatencyBar("shm.view", "Ray", "view", {MIB: 0.5})
    ratio = bar.ratio(point(OURS, "shm.view", MIB, ours_us), point("Ray", "view", MIB, 50.0))
    assert bar.is_met(ratio, MIB) is is_met


def test_every_bar_holds_where_we_are_ten_times_faster() -> None:
    """The highest bar is 9 x."""
    text = page(results(100.0, 1000.0), {})
    assert text.count("| holds |") == len(BARS)


def test_a_lost_bar_is_said_as_plainly_as_a_won_one() -> None:
    """The page keeps the losses."""
    text = page(results(100.0, 100.0), {})
    assert text.count("| **does not hold** |") == len(BARS)


def test_a_bar_lost_at_one_judged_size_is_lost() -> None:
    """At 8 MiB 2.3 x is demanded of the Redis tier, at 32 MiB 5 x."""
    text = page(results(100.0, 300.0), {})
    assert line_of(text, "| redis.get against redis-py").endswith("| **does not hold** |")


def test_a_missing_peer_has_a_reason_and_no_number() -> None:
    """Nothing is filled in for a program that did not run."""
    found = results(100.0, 1000.0)
    found.rounds[0] = [p for p in found.rounds[0] if p.peer != "Mooncake"]
    found.reasons["Mooncake"] = "a library is missing"
    text = page(found, {})
    assert line_of(text, "| Mooncake TCP, get_into").endswith("| not measured: a library is missing | | | |")
    assert line_of(text, "| tcp.get against Mooncake").endswith("| not measured: Mooncake: a library is missing | | | |")


def test_a_view_shows_its_time_only() -> None:
    """Bytes that do not move have no throughput."""
    text = page(results(100.0, 54.6), {})
    assert line_of(text, "| Ray, ray.get view") == "| Ray, ray.get view | 0.0546 ms | 0.0546 ms | 0.0546 ms | - |"


def test_the_versions_of_machine_and_peers_stand_in_the_header() -> None:
    """Numbers without versions can not be repeated."""
    found = results(100.0, 1000.0)
    found.versions["Ray"] = "ray 2.60.0"
    text = page(found, {"Kernel": "6.1"})
    assert "- Kernel: 6.1\n- Ray: ray 2.60.0\n" in text


@pytest.mark.parametrize(("us", "shown"), [(54.64, "0.0546 ms"), (1080.4, "1.08 ms"), (73312.0, "73.3 ms"), (1234567.0, "1230 ms")])
def test_times_have_three_digits(us: float, shown: str) -> None:
    """More would be noise."""
    assert milliseconds(us) == shown

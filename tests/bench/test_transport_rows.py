"""What the transport benchmark reports: ratios that never cross rounds, and one line per variant and size."""

from __future__ import annotations

import pytest

from kvworker.bench.rows import Bench, Row
from kvworker.bench.transport_rows import BATCH, COLUMNS, SINGLES, UNDER_BULK, lines, rows_of
from kvworker.bench.transport_timing import Timing

MIB = 1 << 20
BENCH = Bench("transport", "bytes", "a processor", "uint8")


def timing(p50_s: float, n_operations: int = 10, cpu_s: float = 0.0) -> Timing:
    """Return a timing whose operations all took the same."""
    return Timing(n_operations, n_operations * p50_s, p50_s, 2 * p50_s, cpu_s)


def values(rows: list[Row], variant: str) -> dict[str, float]:
    """Return the medians of one variant's metrics."""
    return {row.metric: row.p50 for row in rows if row.variant == variant}


def test_a_ratio_compares_median_times_of_one_round() -> None:
    """Between the rounds the machine became ten times slower: the ratio of the overall medians would be wrong in both."""
    rounds = [{"memcpy": timing(1.0), "shm.get": timing(2.0)}, {"memcpy": timing(10.0), "shm.get": timing(20.0)}]
    assert values(list(rows_of(BENCH, MIB, rounds)), "shm.get")["over_memcpy"] == 0.5


def test_a_variant_is_not_compared_with_what_was_not_measured() -> None:
    """Without a Redis there is no ratio to redis-py."""
    measured = values(list(rows_of(BENCH, MIB, [{"socket.get": timing(1.0), "tcp.get": timing(2.0)}])), "tcp.get")
    assert {metric for metric in measured if metric.startswith("over_")} == {"over_socket"}


def test_gets_and_puts_are_compared_with_their_own_kind() -> None:
    """A bare socket sends and receives at different speeds."""
    measured = {name: timing(s) for name, s in (("socket.get", 1.0), ("socket.put", 3.0), ("tcp.get", 1.0), ("tcp.put", 1.0))}
    rows = list(rows_of(BENCH, MIB, [measured]))
    assert [values(rows, variant)["over_socket"] for variant in ("tcp.get", "tcp.put")] == [1.0, 3.0]


def test_throughput_and_processor_time_are_per_bytes_moved() -> None:
    """10 operations of 1 MiB in 1 s each, with 0.5 s of processor time together."""
    measured = values(list(rows_of(BENCH, MIB, [{"tcp.get": timing(1.0, 10, 0.5)}])), "tcp.get")
    assert measured["mb_per_s"] == pytest.approx(MIB / 1e6)
    assert measured["cpu_s_per_gb"] == pytest.approx(0.5 / (10 * MIB / 1e9))


def test_a_view_has_a_time_and_no_throughput() -> None:
    """It moves no bytes, so that bytes per second mean nothing."""
    measured = values(list(rows_of(BENCH, MIB, [{"memcpy": timing(1.0), "shm.view": timing(2e-6)}])), "shm.view")
    assert measured == {"p50_us": pytest.approx(2.0), "p99_us": pytest.approx(4.0)}


def test_small_gets_are_judged_against_an_empty_call_and_beside_a_bulk_stream() -> None:
    """Both are shares of time, so that less is better."""
    measured = {"grpc.empty": timing(2e-4), "grpc.get": timing(3e-4), "grpc.get" + UNDER_BULK: timing(6e-4)}
    rows = list(rows_of(BENCH, 4096, [measured]))
    got = values(rows, "grpc.get")
    assert (got["over_empty"], got["p50_under_bulk_us"], got["over_idle"]) == pytest.approx((1.5, 600.0, 2.0))
    assert not [row for row in rows if UNDER_BULK in row.variant]


def test_a_batch_is_compared_with_as_many_single_gets() -> None:
    """Whichever lane the batch takes."""
    rows = list(rows_of(BENCH, 4 * MIB, [{SINGLES: timing(20.0), BATCH: timing(1.0), f"{BATCH}.tcp": timing(2.0)}]))
    assert [values(rows, name)["over_single_grpc"] for name in (BATCH, f"{BATCH}.tcp")] == [20.0, 10.0]


def test_people_read_one_line_per_variant_and_size() -> None:
    """A cell is empty where a variant has no such metric."""
    measured = {"memcpy": timing(1.0), "shm.get": timing(2.0)}
    records = lines([*rows_of(BENCH, MIB, [measured]), *rows_of(BENCH, 2 * MIB, [measured])])
    assert [(record["variant"], record["x"]) for record in records] == [(v, n) for n in (MIB, 2 * MIB) for v in ("memcpy", "shm.get")]
    assert [str(COLUMNS["x memcpy"](record)) for record in records] == ["", "0.50", "", "0.50"]
    assert [str(COLUMNS["copies"](record)) for record in records[:2]] == ["1", "1"]


def test_processor_time_of_a_large_chunk_is_compared_with_that_of_8_mib() -> None:
    """A byte that costs more in a larger chunk is a cliff: memory that is not used again, or a block over the allocator's threshold."""
    level = {"tcp.get": timing(1.0, 10, 8 * 0.1)}
    measured = values(list(rows_of(BENCH, 32 * MIB, [{"tcp.get": timing(4.0, 10, 32 * 0.15)}], level)), "tcp.get")
    assert measured["cpu_over_8_mib"] == pytest.approx(1.5)


def test_what_was_not_measured_at_8_mib_has_no_such_ratio() -> None:
    """As in a run of small chunks only."""
    assert "cpu_over_8_mib" not in values(list(rows_of(BENCH, 32 * MIB, [{"tcp.get": timing(1.0)}])), "tcp.get")

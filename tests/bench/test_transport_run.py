"""The transport benchmark from end to end, with few operations on small chunks: its processes start, agree and end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from kvstore.core.errors import ConfigError, KVError
from kvworker.bench.benchmark import Asked
from kvworker.bench.rows import Row
from kvworker.bench.transport import TransportBench
from kvworker.bench.transport_lanes import make_chunk
from kvworker.bench.transport_processes import client
from kvworker.bench.transport_rows import LANES
from kvworker.bench.transport_timing import Budget, Operation

SMALL = TransportBench(sizes=(4096,), rounds=1, budget=Budget(1, 2, 0.0, 1.0), bulk_nbytes=1 << 20, batch=(8, 1024), cliffs=(16384,))
VARIANTS = {
    "memcpy", "socket.get", "socket.put", "naive_protobuf.get", "naive_protobuf.put", "redis_py.get", "redis_py.put", "grpc.empty",
    "shm.get", "shm.put", "shm.view", "tcp.get", "tcp.put", "grpc.get", "grpc.put", "redis.get", "redis.put", "disk.get", "disk.put",
    "batch.get", "batch.get.tcp", "batch.get.grpc", "grpc.get one by one",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Return the rows of one small run."""
    return list(SMALL.run(Asked()))


def test_every_lane_and_tier_is_measured_beside_its_references(rows: list[Row]) -> None:
    """The names are the benchmark's contract."""
    assert {row.variant for row in rows} == VARIANTS


def test_every_lane_has_the_metrics_of_the_contract(rows: list[Row]) -> None:
    """Throughput, times, processor time, and a ratio per reference."""
    metrics = {row.metric for row in rows if row.variant == "grpc.get"}
    assert metrics >= {"mb_per_s", "p50_us", "p99_us", "cpu_s_per_gb", "p50_under_bulk_us", "over_empty"}
    assert metrics >= {"over_memcpy", "over_socket", "over_naive_protobuf", "over_redis_py"}


def test_our_lanes_alone_are_measured_at_a_cliff(rows: list[Row]) -> None:
    """Once, and nothing that they are compared with."""
    assert {row.variant for row in rows if row.x == 16384} == {
        "shm.view",
        *(f"{lane}.{way}" for lane in LANES for way in ("get", "put")),
    }


def test_every_figure_is_positive(rows: list[Row]) -> None:
    """A zero would be an operation that did nothing."""
    assert not [row for row in rows if row.p50 <= 0]


def test_no_process_is_left(rows: list[Row]) -> None:
    """Neither a client nor a server outlives the run."""
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("sizes", [(), (0,), (4098,)])
def test_a_size_that_has_no_four_parts_is_refused(sizes: tuple[int, ...]) -> None:
    """Before any process is started."""
    with pytest.raises(ConfigError, match="multiple of 4"):
        next(TransportBench(sizes=sizes).run(Asked()))


def test_a_chunk_holds_as_many_bytes_as_its_row_says() -> None:
    """Header and manifest come on top."""
    assert 4096 < len(make_chunk(4096, (0,)).blob) < 8192


class Failing:
    """A subject whose operation fails."""

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        return {"shm.get": Operation(self._fail)}

    def _fail(self) -> None:
        raise KVError("the lane is down")


@contextmanager
def open_failing() -> Iterator[Failing]:
    """Open it."""
    yield Failing()


def test_what_fails_in_a_client_is_said_by_the_benchmark() -> None:
    """A lane that does not work is the benchmark's most important finding."""
    with client("lanes", open_failing) as lanes:
        lanes.wait()
        lanes.prepare(4096)
        with pytest.raises(KVError, match="lanes: KVError: the lane is down"):
            lanes.measure("shm.get", Budget(0, 1, 0.0, 1.0))

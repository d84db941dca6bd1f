"""What a gRPC server and the lanes beside it tell of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore.server.grpc_server import RpcServer
from kvstore.server.observe import names
from kvstore.server.observe.calls import OK, CallLog
from kvstore.server.observe.families import Families
from kvstore.server.observe.source import Panel

_CONNECTIONS, _AT_WORK = "lane_connections", "lanes_at_work"
_MS = 1000


class ServerSource:
    """Implements `Source` for calls, threads and bytes in flight; `lane_calls` are those of the lanes, where there is a store."""

    name = "server"

    def __init__(self, server: RpcServer, lane_calls: CallLog | None = None) -> None:
        self._server = server
        self._logs = [server.calls, *([lane_calls] if lane_calls else [])]

    def metrics(self, out: Families) -> None:
        """Add calls by lane, name and status, and what they hold."""
        for log in self._logs:
            for (lane, call), times in log.times().items():
                out.add_histogram(names.CALL_SECONDS, times, lane, call)
                for code, count in times.ends.items():
                    out.add(names.CALLS, count, lane, call, code)
        for lane, running in self._running().items():
            out.add(names.CALLS_RUNNING, running, lane)
        out.add(names.CALLS_WAITING, self._server.n_waiting)
        out.add(names.INFLIGHT, self._server.budget.lent_bytes)
        out.add(names.INFLIGHT_LIMIT, self._server.config.max_inflight_bytes)
        out.add(names.CONNECTIONS, sum(read() for name, read in self._server.gauges.items() if name == _CONNECTIONS))

    def panel(self) -> Panel:
        """Return the calls with their times, busiest first, and how full the server is."""
        rows = [row for log in self._logs for row in _call_rows(log)]
        return {
            "address": self._server.address,
            "running": sum(self._running().values()),
            "waiting": self._server.n_waiting,
            "inflight_bytes": self._server.budget.lent_bytes,
            "inflight_limit_bytes": self._server.config.max_inflight_bytes,
            "calls": sorted(rows, key=lambda row: -row["count"]),
        }

    def sums(self) -> Mapping[str, float]:
        """Return how many calls ended, and how many of them well."""
        ends = [(code, count) for log in self._logs for times in log.times().values() for code, count in times.ends.items()]
        return {"calls": sum(count for _, count in ends), "failed_calls": sum(count for code, count in ends if code != OK)}

    def _running(self) -> dict[str, int]:
        """Return the calls under way, those of gRPC and those of the lanes beside it."""
        at_work = self._server.gauges.get(_AT_WORK)
        return {"grpc": len(self._server.calls.under_way), **({"lanes": at_work()} if at_work else {})}


def _call_rows(log: CallLog) -> Sequence[dict[str, Any]]:
    """Return one row per lane and call."""
    return [
        {
            "lane": lane,
            "call": call,
            "count": sum(times.ends.values()),
            "failed": sum(count for code, count in times.ends.items() if code != OK),
            "p50_ms": times.quantile(0.5) * _MS,
            "p99_ms": times.quantile(0.99) * _MS,
        }
        for (lane, call), times in log.times().items()
    ]

"""Why a request was answered as it was: what was found, what was weighed, what was decided, and what came of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from kvclient.records import AnswerExplanation, PassageReport, Report
from kvstore.core.api import Hit, Status
from kvstore.core.errors import NotFoundError
from kvstore.core.reasons import meaning_of
from kvstore.core.units import format_nbytes
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.plan import Compute, Load, format_s
from kvstore.planners.samples import Pass, tier_subject
from kvworker.answer.course import Course
from kvworker.answer.prompt import Asked

KEPT_REQUESTS = 256  # of each tenant
KEPT_LINES = 131_072  # of all tenants together: some 40 MB
_SHOWN_CHARS = 40  # of an id that somebody typed


def explain(report: Report, course: Course, costs: CostModel) -> Iterator[str]:
    """Yield five lines about the request, six where it had a target, then one per passage; `costs` are what the plan was made with."""
    yield f"request {report.request_id}: planner {report.planner}, policy {report.policy}, quality {report.quality}"
    yield f"costs: {'; '.join(_costs(course, costs)) or 'nothing was measured yet'}"
    yield f"plan: {course.plan.why}; {format_s(course.plan.compute_s)} of computing beside {format_s(course.plan.load_s)} of loading"
    if report.target:
        yield f"target: {report.target}"
    yield f"time to first token: predicted {format_s(course.predicted_s)}, took {format_s(report.ttft_s)}{_missed_by(report)}"
    yield "of it: " + ", ".join(f"{step} {format_s(seconds)}" for step, seconds in report.ttft_split_s.items())
    for asked, item, row in zip(course.asked, course.plan.items, report.passages, strict=True):
        name = f"{row.passage.source}#{row.passage.index} ({row.passage.id[:12]}, {row.passage.n_tokens} tokens)"
        yield f"{name}: found {_found(asked)}; plan: {item.why}; then {_happened(item, row)}"


def _costs(course: Course, costs: CostModel) -> Iterator[str]:
    """Yield what the plan took for granted about prefill and about each tier that has something."""
    if prefill := costs.prefill(Pass.WHOLE):
        pass_s, row_s, pair_s = prefill.coefficients
        yield f"prefill {format_s(pass_s)} + {format_s(row_s)} a row + {format_s(pair_s)} a row and key {_trust(prefill)}"
    found = (stored.hit.tier for asked in course.asked for stored in asked.stored if stored.hit.status is Status.READY)
    for tier in dict.fromkeys(found):
        if cost := costs.costs.get(tier_subject(tier)):
            fixed_s, byte_s = cost.coefficients
            yield f"tier {tier} {format_s(fixed_s)} + {format_s(byte_s * (1 << 20))} a MiB {_trust(cost)}"


def _trust(cost: LinearCost) -> str:
    """Say what a cost rests on."""
    return f"({cost.n_samples} samples, off by {100 * cost.relative_error:.0f} %)"


def _missed_by(report: Report) -> str:
    """Say how far the prediction was off, where there was one."""
    if not report.predicted_ttft_s:
        return ""
    return f", {100 * (report.ttft_s / report.predicted_ttft_s - 1):+.0f} %"


def _found(asked: Asked) -> str:
    """Say what the store had of each reading."""
    return " and ".join(f"read as {s.reading.read_as} {_state(s.hit)}" for s in asked.stored) or "no reading that may be used"


def _state(hit: Hit) -> str:
    """Say where a chunk is, or why it is not there."""
    if hit.status is Status.READY:
        return f"in {hit.tier}, {format_nbytes(hit.nbytes)}"
    meaning = meaning_of(hit.reason)
    return f"not stored ({hit.reason or hit.status.value}{': ' if meaning else ''}{meaning})"


def _happened(item: Load | Compute, row: PassageReport) -> str:
    """Say what was done for a passage."""
    if row.action == "load":
        predicted = f" (predicted {format_s(item.load_s)})" if isinstance(item, Load) else ""
        took = f"loaded {format_nbytes(row.nbytes)} from {row.tier} in {format_s(row.seconds)}{predicted}"
        return f"{took}, {row.rows_recomputed} rows computed again"
    reason = f": {row.why}" if isinstance(item, Load) else ""
    return f"computed {row.rows_recomputed} rows{reason}"


class Explanations:
    """The last requests of each tenant, 256 of each and 131,072 lines in all. Thread-safe; nobody sees another tenant's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, deque[AnswerExplanation]] = {}
        self._lines: dict[str, int] = {}  # by tenant

    def keep(self, tenant: str, explanation: AnswerExplanation) -> None:
        """Remember a request; the oldest of this tenant goes behind 256, and that of whoever has most lines when there are too many."""
        with self._lock:
            kept = self._kept.setdefault(tenant, deque())
            kept.append(explanation)
            self._lines[tenant] = self._lines.get(tenant, 0) + len(explanation.lines)
            if len(kept) > KEPT_REQUESTS:
                self._drop(tenant)
            while sum(self._lines.values()) > KEPT_LINES:
                self._drop(max(self._lines, key=lambda name: self._lines[name]))

    def find(self, tenant: str, request_id: str = "") -> AnswerExplanation:
        """Return the tenant's latest request whose id starts so, by default the latest; raises NotFoundError that says what is kept."""
        with self._lock:
            kept = list(self._kept.get(tenant, ()))
        found = next((e for e in reversed(kept) if e.report.request_id.startswith(request_id)), None)
        if found is not None:
            return found
        what = f"no request {request_id[:_SHOWN_CHARS]!r} is" if request_id else "no request of yours is"
        latest = f"; of yours it has {len(kept)}, the latest is {kept[-1].report.request_id}" if kept else ""
        raise NotFoundError(f"{what} known here: a worker keeps the last {KEPT_REQUESTS} of each tenant since its start{latest}")

    def _drop(self, tenant: str) -> None:
        """Forget a tenant's oldest request."""
        self._lines[tenant] -= len(self._kept[tenant].popleft().lines)
        if not self._kept[tenant]:
            del self._kept[tenant], self._lines[tenant]

"""What a worker tells of itself: first tokens, what was loaded and computed, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvclient.records import Report
from kvstore.core.reasons import meaning_of
from kvstore.server.observe.families import COUNTER, GAUGE, HISTOGRAM, Families, Metric, Names
from kvstore.server.observe.source import Panel
from kvworker.serve.ledger import Answered, Ledger

REQUESTS = Metric("larder_requests_total", COUNTER, "Questions that were answered.", ("tenant",))
RUNNING = Metric("larder_requests_running", GAUGE, "Questions being answered, those that wait for the model included.")
TTFT = Metric("larder_ttft_seconds", HISTOGRAM, "Seconds from a question to its first token.")
TTFT_STEPS = Metric("larder_ttft_step_seconds_total", COUNTER, "The same, split: lookup, plan, queue, load and prefill.", ("step",))
PREDICTION = Metric("larder_ttft_prediction_ratio", HISTOGRAM, "Time to the first token over what was predicted.")
TOKENS = Metric("larder_tokens_total", COUNTER, "Tokens: loaded, recomputed and generated.", ("kind", "tenant"))
PASSAGES = Metric("larder_passages_total", COUNTER, "Passages of questions: loaded from a tier, or computed and why.", ("action", "reason"))
PLANS = Metric("larder_plans_total", COUNTER, "Questions by policy and planner.", ("policy", "planner"))
LOADED = Metric("larder_loaded_bytes_total", COUNTER, "Bytes that questions loaded, by tier.", ("tier",))
PUSHING = Metric("larder_push_queue_bytes", GAUGE, "KV bytes that wait to be encoded and stored.")
DEVICE = Metric("larder_device_tier_bytes", GAUGE, "Bytes of decoded passages kept on the device.")

WORKER_METRICS = (REQUESTS, RUNNING, TTFT, TTFT_STEPS, PREDICTION, TOKENS, PASSAGES, PLANS, LOADED, PUSHING, DEVICE)

_MOST_POLICIES = 16
_MOST_WORDS = 32  # tiers and reasons, as stores name them
_SHOWN_REQUESTS = 25
_SHOWN_PASSAGES = 20
_OWN_MEANINGS = {
    "chosen": "it is stored, and the planner expected computing to be sooner",
    "sooner": "it was computed while its load was still on its way",
    "failed": "its load failed",
    "policy": "the policy computes all of its rows",
}
_STEPS = {
    "lookup": "the store was slow to say what it has",
    "plan": "choosing between loading and computing took long",
    "queue": "it waited for the model behind other requests",
    "load": "it waited for chunks to arrive",
    "prefill": "computing",
}


class WorkerSource:
    """Implements `Source` for a worker; `held` reads bytes that wait to be stored and bytes on the device."""

    name = "worker"

    def __init__(self, ledger: Ledger, held: Callable[[], tuple[int, int]], most_tenants: int) -> None:
        self._ledger, self._held = ledger, held
        self._tenants, self._policies, self._words = Names(most_tenants), Names(_MOST_POLICIES), Names(_MOST_WORDS)

    def metrics(self, out: Families) -> None:
        """Add requests, tokens, passages and times."""
        counts, (pushing, on_device) = self._ledger.counts(), self._held()
        out.add(RUNNING, self._ledger.n_running)
        out.add(PUSHING, pushing)
        out.add(DEVICE, on_device)
        out.add_histogram(TTFT, self._ledger.ttft)
        out.add_histogram(PREDICTION, self._ledger.ratio)
        for tenant, sums in self._ledger.tenants().items():
            label = self._tenants.label(tenant)
            out.add(REQUESTS, sums.requests, label)
            for kind in ("loaded", "recomputed", "generated"):
                out.add(TOKENS, getattr(sums, kind), kind, label)
        for (policy, planner), n in counts.plans.items():
            out.add(PLANS, n, self._policies.label(policy), planner)
        for (action, reason), n in counts.passages.items():
            out.add(PASSAGES, n, action, self._words.label(reason))
        for tier, nbytes in counts.tier_bytes.items():
            out.add(LOADED, nbytes, self._words.label(tier))
        for step, seconds in counts.step_s.items():
            out.add(TTFT_STEPS, seconds, step)

    def panel(self) -> Panel:
        """Return decisions, times, tenants, and the slowest of the last thousand requests with why."""
        counts, tenants, latest = self._ledger.counts(), self._ledger.tenants(), self._ledger.latest()
        slowest = sorted(latest, key=lambda answered: -answered.report.ttft_s)[:_SHOWN_REQUESTS]
        rows: dict[str, dict[str, Any]] = {}
        for tenant, sums in tenants.items():
            row = rows.setdefault(self._tenants.label(tenant), {"requests": 0, "loaded": 0, "recomputed": 0, "generated": 0})
            for name in row:
                row[name] += getattr(sums, name)
        return {
            "requests": sum(sums.requests for sums in tenants.values()),
            "running": self._ledger.n_running,
            "ttft_p50_s": self._ledger.ttft.quantile(0.5),
            "ttft_p99_s": self._ledger.ttft.quantile(0.99),
            "prediction_p50": self._ledger.error.quantile(0.5),
            "tokens": {kind: sum(row[kind] for row in rows.values()) for kind in ("loaded", "recomputed", "generated")},
            "tenants": sorted(({"tenant": name, **row} for name, row in rows.items()), key=lambda row: -row["requests"]),
            "policies": [{"policy": policy, "planner": planner, "count": n} for (policy, planner), n in counts.plans.most_common(8)],
            "passages": [_passage_row(*each) for each in counts.passages.most_common()],
            "slowest": [self._request_row(answered) for answered in slowest],
        }

    def sums(self) -> Mapping[str, float]:
        """Return requests, and tokens loaded and computed."""
        tenants = self._ledger.tenants().values()
        return {name: sum(getattr(sums, name) for sums in tenants) for name in ("requests", "loaded", "recomputed")}

    def _request_row(self, answered: Answered) -> dict[str, Any]:
        """Return one request as the console shows it."""
        report = answered.report
        return {
            "at_s": answered.at_s,
            "tenant": self._tenants.label(answered.tenant),
            "request": report.request_id,
            "ttft_s": report.ttft_s,
            "predicted_s": report.predicted_ttft_s,
            "loaded": report.tokens_loaded,
            "recomputed": report.tokens_recomputed,
            "why": why_slow(report),
            "passages": [
                f"{row.passage.source}#{row.passage.index}: {row.action} {row.tier}: {row.why}" for row in report.passages[:_SHOWN_PASSAGES]
            ],
        }


def why_slow(report: Report) -> str:
    """Say what most of the time to the first token went to, and what was missing."""
    step, seconds = max(report.ttft_split_s.items(), key=lambda each: each[1], default=("prefill", report.ttft_s))
    missing: dict[str, int] = {}
    for row in report.passages:
        if row.action != "load":
            missing[row.reason] = missing.get(row.reason, 0) + 1
    told = ", ".join(f"{n} of {len(report.passages)} passages computed ({reason.replace('_', ' ')})" for reason, n in missing.items())
    share = f"{100 * seconds / report.ttft_s:.0f} % {step}" if report.ttft_s else step
    return "; ".join(filter(None, (f"{share}: {_STEPS.get(step, step)}", told)))


def _passage_row(became: tuple[str, str], count: int) -> dict[str, Any]:
    action, reason = became
    meaning = "" if action == "load" else _OWN_MEANINGS.get(reason) or meaning_of(reason)
    return {"action": action, "reason": reason, "count": count, "meaning": meaning}

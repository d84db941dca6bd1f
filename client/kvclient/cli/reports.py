"""Reports of answers, as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from kvclient import Report
from kvclient.cli.output import Number, Output
from kvstore.core.units import format_nbytes

COLUMNS: dict[str, Callable[[Any], object]] = {
    "passage": lambda r: f"{r['passage']['source']}#{r['passage']['index']}",
    "id": lambda r: r["passage"]["id"][:12],
    "action": lambda r: r["action"],
    "tier": lambda r: r["tier"] or "-",
    "read": lambda r: r["read_as"] or "-",
    "variant": lambda r: r["variant"],
    "size": lambda r: Number(format_nbytes(r["nbytes"])),
    "ms": lambda r: Number(f"{1000 * r['seconds']:.1f}"),
    "recomputed": lambda r: r["rows_recomputed"],
    "why": lambda r: r["why"],
}


def show_report(report: Report, output: Output) -> None:
    """Show a report to people: one row per passage, then the sums."""
    output.table(asdict(report)["passages"], COLUMNS)
    split = ", ".join(f"{name} {1000 * s:.1f}" for name, s in report.ttft_split_s.items())
    output.text(f"first token after {1000 * report.ttft_s:.1f} ms ({split}), predicted {1000 * report.predicted_ttft_s:.1f} ms")
    if report.target:
        output.text(report.target)
    output.text(
        f"{report.tokens_loaded} tokens loaded, {report.tokens_recomputed} recomputed, {report.tokens_generated} generated; "
        f"planner {report.planner}, policy {report.policy}, quality {report.quality}, request {report.request_id}"
    )

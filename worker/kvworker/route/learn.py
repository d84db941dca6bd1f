"""Take in what an answer says of the worker that gave it."""

from __future__ import annotations

from collections.abc import Sequence

from kvclient.records import Report
from kvworker.route.board import Board
from kvworker.route.names import DEVICE, Names
from kvworker.route.turn import Turn

_BRINGING = ("load", "prefill")  # the steps of a first token in which a worker brings what it has not at hand


def learn(board: Board, names: Names, turn: Turn, tenant: str, asked: Sequence[str], report: Report) -> None:
    """Note what the worker holds now, which is what it loaded, how long bringing the rest took, and how long the question waited."""
    nbytes = names.learn(tenant, asked, report.passages)
    keys = [(tenant, row.passage.id) for row in report.passages]
    held = {key: nbytes[key] for key, row in zip(keys, report.passages, strict=True) if row.action == "load" and key in nbytes}
    brought = sum(nbytes.get(key, 0) for key, row in zip(keys, report.passages, strict=True) if row.tier != DEVICE)
    brought_s = sum(report.ttft_split_s.get(step, 0.0) for step in _BRINGING)
    board.answered(turn, held, brought, brought_s, report.ttft_split_s.get("queue", 0.0))

"""Presets beside rivals at equal bits: what a rival loses at a preset's bits lies between two of its settings that were measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bench.codec_results import PEER, Measured
from kvworker.bench.codec_catalogue import UNCALIBRATED
from kvworker.codec.presets import LADDER

RIVALS = {
    "KIVI": "kivi:bits=",
    "quanto": f"{PEER}quanto ",
    "quanto, K by channel": f"{PEER}quanto, K by channel,",
    "HQQ": f"{PEER}HQQ ",
}
"""What rivals are called, by how the names of their settings begin."""
_EIGHT_BITS = 8


def table(found: Sequence[Measured]) -> Iterator[str]:
    """Yield a row for each preset of fewer than eight bits, and a column for each rival."""
    yield f"| | bits | attention error | {' | '.join(RIVALS)} |"
    yield "| --- " * (3 + len(RIVALS)) + "|"
    names = [*(preset.name for preset in LADDER), *UNCALIBRATED]
    for own in sorted((m for m in found if m.variant in names and m.bits < _EIGHT_BITS), key=lambda m: -m.bits):
        cells = [_cell(own.bits, [m for m in found if m.variant.startswith(start)]) for start in RIVALS.values()]
        yield f"| `{own.variant}` | {own.bits:.2f} | {own.metrics['attn_err']:.4f} | {' | '.join(cells)} |"


def _cell(bits: float, settings: Sequence[Measured]) -> str:
    """Return a rival's attention error at these bits; where it has no setting of so few, at its fewest."""
    if not settings:
        return ""
    fewest = min(m.bits for m in settings)
    error = error_at(bits, [(m.bits, m.metrics["attn_err"]) for m in settings])
    return f"{error:.4f} at {fewest:.2f}" if bits < fewest else f"{error:.4f}"


def error_at(bits: float, settings: Sequence[tuple[float, float]]) -> float:
    """Return what settings (bits, error) lose at these bits: on the line between neighbours, in the logarithm of the error.

    Settings that another one beats at no more bits do not count. Below the fewest bits it is the error there, above the most likewise.
    """
    best: list[tuple[float, float]] = []
    for place, error in sorted(settings):
        if not best or error < best[-1][1]:
            best.append((place, error))
    below = max((own for own in best if own[0] <= bits), default=best[0])
    above = min((own for own in best if own[0] >= bits), default=best[-1])
    if below[0] >= above[0]:
        return below[1]
    share = (bits - below[0]) / (above[0] - below[0])
    return math.exp((1 - share) * math.log(below[1]) + share * math.log(above[1]))

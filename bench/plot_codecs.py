"""Draw what `larder bench codecs` measured: how often the first token is that from raw KV, and how far attention is off, against bits.

    python -m bench.plot_codecs tests/bench/results.csv tests/bench

Writes codecs.png. Presets and peers are named, other codecs are dots; the line joins those that nothing beats at fewer bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.codec_results import PEER, RAW, Measured, read_codecs
from kvworker.codec.presets import LADDER

_DEFAULT = ", groups of 64"
"""How the names of peers end whose setting is their library's; others are not named in the plot."""
_PRESETS = {preset.name for preset in LADDER}


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (bits, gain) that no other beats with fewer bits and as much gain, from few bits to many."""
    best: list[tuple[float, float]] = []
    for bits, gain in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or gain > best[-1][1]:
            best.append((bits, gain))
    return best


def draw_codecs(found: Sequence[Measured]) -> Figure:
    """Draw two panels: agreement and attention error against bits."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    coded = [m for m in found if m.variant != RAW]
    _panel(left, coded, "top1", "first token as from raw KV, share", 1)
    _panel(right, [m for m in coded if m.metrics["attn_err"] > 0], "attn_err", "attention error, norm over norm", -1)
    right.set_yscale("log")
    return figure


def _panel(axis: Axes, found: Sequence[Measured], metric: str, label: str, sense: int) -> None:
    """Draw one metric, where `sense` -1 says that less is better."""
    kinds = (
        ("codecs", "o", "tab:blue", [m for m in found if m.variant not in _PRESETS and not m.variant.startswith(PEER)]),
        ("presets", "*", "tab:red", [m for m in found if m.variant in _PRESETS]),
        ("transformers' quantized cache", "X", "tab:gray", [m for m in found if m.variant.startswith(PEER)]),
    )
    for name, marker, colour, group in kinds:
        places = [(m.bits, m.metrics[metric]) for m in group]
        axis.scatter([x for x, _ in places], [y for _, y in places], marker=marker, color=colour, label=name, s=90 if marker == "*" else 28)
        for m in (m for m in group if marker == "*" or m.variant.endswith(_DEFAULT)):
            name, place = m.variant.removeprefix(PEER).removesuffix(_DEFAULT), (m.bits, m.metrics[metric])
            axis.annotate(name, place, textcoords="offset points", xytext=(6, 4), fontsize=7)
    own = [(m.bits, sense * m.metrics[metric]) for m in found if not m.variant.startswith(PEER)]
    best = frontier(own)
    axis.plot([x for x, _ in best], [sense * y for _, y in best], color="tab:red", linewidth=0.8, alpha=0.6)
    axis.set(xlabel="bits a value, everything counted", ylabel=label)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def main() -> None:
    """Read a CSV file and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="what the benchmarks appended their rows to")
    parser.add_argument("folder", type=Path, help="where the plot goes")
    arguments = parser.parse_args()
    path = arguments.folder / "codecs.png"
    draw_codecs(read_codecs(arguments.csv)).savefig(path, dpi=130, metadata={"Software": None})
    print(path)


if __name__ == "__main__":
    main()

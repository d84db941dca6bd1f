"""Draw what `larder bench reuse` measured: accuracy against time to the first token, and predicted against actual times.

    python -m bench.plot tests/bench/results.csv tests/bench

Writes reuse.svg and prediction.svg. Of points that were measured more than once, the last one counts.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = Mapping[tuple[str, float], Mapping[str, float]]
"""From a variant and its share of rows to the medians of its metrics."""

MAIN = "8"
_LATE = "late_chunking"
_LAYOUT = {
    "svg.hashsalt": "larder",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def read_points(rows: Sequence[Mapping[str, str]]) -> Points:
    """Return the reuse benchmark's points; cases without times are left out."""
    points: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["bench"] == "reuse":
            points[row["variant"], float(row["x"])][row["metric"]] = float(row["p50"])
    return {place: metrics for place, metrics in points.items() if "ttft_ratio" in metrics}


def by_passages(points: Points) -> dict[str, dict[str, list[Mapping[str, float]]]]:
    """Return points by number of passages, and within by policy, each from few rows to many."""
    found: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for (variant, _), metrics in sorted(points.items(), key=lambda item: item[0][1]):
        name, _, passages = variant.partition("@")
        found[passages or MAIN][name].append(metrics)
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def draw_reuse(points: Points) -> Figure:
    """Draw carried facts right against TTFT over full prefill's: up and to the left is better."""
    panels = by_passages(points)
    figure = Figure(figsize=(3.4 * max(len(panels), 2), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colours = {name: "black" if name == _LATE else mpl.colormaps["tab20"](i % 20) for i, name in enumerate(names)}
    for axis, (passages, policies) in zip(axes, panels.items(), strict=True):
        axis.set_title(f"{passages} passages")
        axis.set_xlabel("time to first token / full prefill")
        for name, found in policies.items():
            places = [(m["ttft_ratio"], m["accuracy_carried"]) for m in found if "accuracy_carried" in m]
            marker = "*" if name.startswith(_LATE) else "o"
            axis.plot(*zip(*places, strict=True), marker=marker, label=name, color=colours[name], markersize=9 if marker == "*" else 5)
    axes[0].set_ylabel("carried facts right, share")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    return figure


def draw_prediction(points: Points) -> Figure:
    """Draw actual against predicted TTFT, with a band of 10 % around what would be perfect."""
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis: Axes = figure.subplots()
    places = defaultdict(list)
    for (variant, _), metrics in points.items():
        places[variant.partition("@")[0]].append((metrics["ttft_predicted"] * 1e3, metrics["ttft"] * 1e3))
    ends = [min(min(p) for found in places.values() for p in found) * 0.8, max(max(p) for found in places.values() for p in found) * 1.25]
    axis.plot(ends, ends, color="grey", linewidth=1)
    axis.fill_between(ends, [0.9 * x for x in ends], [1.1 * x for x in ends], color="grey", alpha=0.2, label="within 10 %", linewidth=0)
    for i, (name, found) in enumerate(places.items()):
        axis.scatter(*zip(*found, strict=True), s=18, label=name, color=mpl.colormaps["tab20"](i % 20))
    axis.set(xscale="log", yscale="log", xlabel="predicted time to first token, ms", ylabel="actual, ms", xlim=ends, ylim=ends)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def main() -> None:
    """Read a CSV file and write both plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="what the benchmarks appended their rows to")
    parser.add_argument("folder", type=Path, help="where the plots go")
    arguments = parser.parse_args()
    with arguments.csv.open(newline="", encoding="utf-8") as file:
        points = read_points(list(csv.DictReader(file)))
    if not points:
        raise SystemExit(f"{arguments.csv} has no rows of the reuse benchmark; run `larder bench reuse --csv {arguments.csv}` first")
    with mpl.rc_context(_LAYOUT):
        for name, draw in (("reuse", draw_reuse), ("prediction", draw_prediction)):
            path = arguments.folder / f"{name}.svg"
            draw(points).savefig(path, metadata={"Date": None})
            print(path)


if __name__ == "__main__":
    main()

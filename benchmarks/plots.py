"""Plots of a result: time against batch size, against fidelity and against number of species.

write_plots(result, Path("public/bench"))     # [public/bench/batch.png, …/fidelity.png, …/species.png]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    NullLocator,
)

from benchmarks.speed import best_entry
from plantmodels.report.render.plot_style import INK, LINE, MUTED

_STYLES: Final[dict[str, dict[str, Any]]] = {
    "literal recipe INT8": {"color": "#a8352b", "linestyle": "-"},
    "PyTorch FP32": {"color": "#c07a3a", "linestyle": "-"},
    "PyTorch bf16": {"color": "#c07a3a", "linestyle": "--"},
    "OpenVINO FP32": {"color": "#4a6fa5", "linestyle": "-"},
    "OpenVINO bf16": {"color": "#4a6fa5", "linestyle": "--"},
    "OpenVINO INT8": {"color": "#4a6fa5", "linestyle": ":"},
    "ours FP16": {"color": "#3f7d58", "linestyle": "--"},
    "ours INT8": {"color": "#3f7d58", "linestyle": "-", "linewidth": 2.6},
}
_DPI: Final = 160


def write_plots(result: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw every plot for which the result has numbers, into an existing folder."""
    written = []
    if part := result.get("speed"):
        written.append(_save(draw_batches(part["speed"]), out / "batch.png"))
        written.append(_save(draw_fidelity(part), out / "fidelity.png"))
    if (entries := result.get("species")) and len(entries) > 1:
        written.append(_save(draw_species(entries), out / "species.png"))
    return written


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def draw_batches(speed: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw milliseconds per image against batch size, with quartiles; each contestant is in its better mode."""
    threads = max(entry["threads"] for entry in speed)
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    ends: dict[str, float] = {}
    batches: set[int] = set()
    for name in dict.fromkeys(entry["contestant"] for entry in speed):
        sizes = sorted({entry["batch"] for entry in speed if entry["contestant"] == name})
        found = [best_entry(speed, name, threads=threads, source="tensor", batch=size) for size in sizes]
        entries = [entry for entry in found if entry is not None]
        if not entries:
            continue
        xs = [entry["batch"] for entry in entries]
        low, middle, high = ([1000 * e[key] / e["batch"] for e in entries] for key in ("q1_s", "median_s", "q3_s"))
        style = {"linewidth": 1.6, **_STYLES.get(name, {"color": MUTED})}
        axes.plot(xs, middle, marker="o", markersize=3.5, **style)
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.12, linewidth=0)
        ends[name] = middle[-1]
        batches |= set(xs)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _tidy(axes, sorted(batches))
    axes.set_xlim(min(batches) / 1.12, max(batches) * 1.12)
    _label_ends(axes, ends, max(batches))
    axes.set_xlabel("images in a batch", color=MUTED, fontsize=9)
    axes.set_title(f"Milliseconds an image, ready tensor to final row, {threads} threads", **_TITLE)
    return figure


def draw_fidelity(part: Mapping[str, Any]) -> Figure:
    """Draw how far each contestant's embedding is from the reference's against its time for one image.

    The reference itself is left out: it has no distance, and both axes are logarithmic.
    """
    speed, agreement = part["speed"], part["agreement"]
    threads = max(entry["threads"] for entry in speed)
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    points: dict[str, tuple[float, float, str]] = {}
    for name, found in agreement.items():
        entry = best_entry(speed, name, threads=threads, source="tensor", batch=1)
        if entry is None or not found["embedding_rms"]:
            continue
        color = _STYLES.get(name, {"color": MUTED})["color"]
        low, middle, high = (1000 * entry[key] for key in ("q1_s", "median_s", "q3_s"))
        axes.plot([low, high], [found["embedding_rms"]] * 2, color=color, linewidth=1.6, alpha=0.5)
        axes.plot(middle, found["embedding_rms"], marker="o", markersize=6, color=color)
        changed = f"{found['images'] - found['species']:,} other species"
        points[name] = middle, found["embedding_rms"], f"{name}: {middle:.1f} ms, {changed}"
    axes.set_xscale("log")
    axes.set_yscale("log")
    _tidy(axes, [])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.6)  # room for the names, right of the slowest contestant
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_major_formatter(LogFormatterSciNotation())
    _label_points(axes, points, factor=1.15)
    axes.set_xlabel(
        f"milliseconds for one image, ready tensor to final row, {threads} threads", color=MUTED, fontsize=9
    )
    images = next(iter(agreement.values()))["images"]
    axes.set_title(f"Distance of the embedding from PyTorch FP32 (root mean square), {images:,} leaves", **_TITLE)
    return figure


def _label_ends(axes: Axes, ends: Mapping[str, float], x: float) -> None:
    """Write names and values beside the ends of the lines, right of the axes."""
    points = {name: (x, value, f"{name}  {value:.1f}") for name, value in ends.items()}
    _label_points(axes, points, factor=1.22)


def _label_points(axes: Axes, points: Mapping[str, tuple[float, float, str]], factor: float) -> None:
    """Write a text right of each point (x, y, text), at `factor · x`, moved up where two would overlap.

    Both axes are logarithmic.
    """
    bottom, top = np.log(axes.get_ylim())
    gap = (top - bottom) / 22
    places: list[float] = []
    for name, (x, y, text) in sorted(points.items(), key=lambda point: point[1][1]):
        place = max(np.log(y), places[-1] + gap if places else -np.inf)
        places.append(place)
        axes.annotate(
            text,
            (x, y),
            xytext=(factor * x, np.exp(place)),
            textcoords="data",
            va="center",
            fontsize=8.5,
            color=_STYLES.get(name, {"color": MUTED})["color"],
            fontweight="bold" if name.startswith("ours") else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": LINE,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 3,
                "linewidth": 0.8,
            },
        )


_TITLE: Final[dict[str, Any]] = {"loc": "left", "fontsize": 10, "color": INK, "pad": 10}


def _tidy(axes: Axes, xs: Sequence[int]) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(FixedLocator(list(xs)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        steps = [n * 10**k for k in range(-3, 5) for n in (1, 1.5, 2, 3, 5, 7)]
        axes.yaxis.set_major_locator(FixedLocator([step for step in steps if low <= step <= high]))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_species(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw four panels against the number of species; both axes start at zero, so linear growth is a straight line."""
    xs = [entry["species"] for entry in entries]
    after = [1000 * (e["steps"]["ood"]["median_s"] + e["steps"]["disease"]["median_s"]) for e in entries]
    panels = (
        (
            "Export, detector on a few leaves, s",
            {
                "in all": [entry["export"]["total_s"] for entry in entries],
                "species model": [entry["export"]["steps"].get("export species", np.nan) for entry in entries],
            },
        ),
        (
            "All heads exported, quantized, checked, s",
            {"": [entry["heads"]["exported_and_checked"]["median_s"] for entry in entries]},
        ),
        ("Bundle checked and loaded, s", {"": [entry["load"]["median_s"] for entry in entries]}),
        (
            "One image, tensor to final row, ms",
            {"in all": [1000 * entry["tensor"]["median_s"] for entry in entries], "OOD score\nand disease": after},
        ),
    )
    figure = Figure(figsize=(8.2, 5.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05, hspace=0.08)  # type: ignore[union-attr]
    for axes, (title, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        _draw_panel(axes, title, xs, lines)
    figure.supxlabel("species", color=MUTED, fontsize=9)
    return figure


def _draw_panel(axes: Axes, title: str, xs: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    top = 1.15 * max(np.nanmax(ys) for ys in lines.values())
    styles = ({"color": "#3f7d58", "linestyle": "-"}, {"color": "#4a6fa5", "linestyle": "--"})
    for (label, ys), style in zip(lines.items(), styles, strict=False):
        axes.plot(xs, ys, marker="o", markersize=3.5, linewidth=1.8, clip_on=False, **style)
        axes.annotate(
            f"{label}\n{ys[-1]:.3g}".strip(),
            (xs[-1], ys[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center" if ys[-1] > 0.1 * top else "bottom",  # the axis has its own numbers below
            fontsize=8.5,
            color=style["color"],
            annotation_clip=False,
        )
    axes.set_xlim(0, 1.02 * max(xs))
    axes.set_ylim(0, top)
    _tidy(axes, xs)
    axes.set_title(title, **_TITLE)

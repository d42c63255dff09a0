"""The pictures of the comparisons: SVG on no background, readable on white and on black."""

from __future__ import annotations

from pathlib import Path

import _needed  # noqa: F401 - tells what is missing
import matplotlib as mpl
from harness import number

mpl.use("svg")
from matplotlib import pyplot as plt  # after the choice of the backend
from matplotlib.figure import Figure

GREY = "#808080"  # a contrast of about 4 to white, and of 5 to black
OURS = "#2f81f7"
THEIRS = ("#8b949e", "#b08800", "#a371f7", "#3fa45b", "#db6d28", "#d1508b")

mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "pickledbd",  # the same picture is the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": GREY,
        "axes.labelcolor": GREY,
        "axes.edgecolor": GREY,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "legend.frameon": False,
        "savefig.transparent": True,
    }
)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _color(name: str, others: dict[str, str]) -> str:
    if name.startswith(("pickledbd", "Async")):
        return OURS
    return others.setdefault(name, THEIRS[len(others) % len(THEIRS)])


def bars(path: Path, *, title: str, groups: list[str], figures: dict[str, list[float]]) -> None:
    """A panel for each of `groups`, in each a bar for each contender, on a logarithmic scale."""
    names = list(figures)[::-1]
    figure, panels = plt.subplots(
        1,
        len(groups),
        sharey=True,
        squeeze=False,
        figsize=(3 + 2.6 * len(groups), 1 + 0.27 * len(names)),
    )
    for column, (panel, group) in enumerate(zip(panels[0], groups, strict=True)):
        heights = [figures[name][column] for name in names]
        colors = [OURS if name.startswith(("pickledbd", "Async")) else THEIRS[0] for name in names]
        drawn = panel.barh(names, heights, color=colors, height=0.7)
        panel.bar_label(
            drawn, [number(height) for height in heights], padding=3, color=GREY, fontsize=8
        )
        panel.set_xscale("log")
        panel.set_title(group, fontsize=10)
        low, high = min(filter(None, heights)), max(heights)
        panel.set_xlim(low / 2, high * 8)
        panel.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    _save(figure, path)


def lines(
    path: Path, *, title: str, x: list[int], x_label: str, figures: dict[str, list[float]]
) -> None:
    """A line for each contender, both scales logarithmic."""
    figure, panel = plt.subplots(figsize=(8, 4.5))
    others: dict[str, str] = {}
    for name, heights in figures.items():
        ours = name.startswith("pickledbd")
        style = "--" if len(others) >= len(THEIRS) and not ours else "-"
        width = 2.5 if ours else 1.3
        panel.plot(x, heights, style, marker="o", label=name, color=_color(name, others), lw=width)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(x, [f"{one:,}" for one in x])
    panel.minorticks_off()
    panel.set_xlabel(x_label)
    panel.set_title(title)
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)

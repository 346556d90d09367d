"""The report's figures: numbers in, SVG out, its colours taken from the page so that light and dark both read well."""

import html
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egt_pipeline.metrics import Bin, Proportion
from egt_pipeline.report_data import Floats, Mask

# Stand-ins that matplotlib draws with and the page replaces by its own colours.
INK, LINE, FIRST, SECOND, CUT = "#010101", "#020202", "#030303", "#040404", "#050505"
_COLOURS = {INK: "--ink", LINE: "--line", FIRST: "--first", SECOND: "--second", CUT: "--cut"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and takes the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # names of a user's arms may hold dollar signs
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def svg(name: str, label: str, draw: Callable[[Figure], None], size: tuple[float, float] = (5.2, 2.9)) -> str:
    """A figure as an <svg> element that fills the width it is given."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):  # the salt keeps ids apart on one page, and stable
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    named = f'role="img" aria-label="{html.escape(label)}"'
    drawn = re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', lambda tag: f"<svg {tag[1]} {named}>", drawn, count=1)
    drawn = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", drawn)  # names of groups repeat from figure to figure
    for colour, variable in _COLOURS.items():
        drawn = drawn.replace(colour, f"var({variable})")
    return drawn


def losses(step: Floats, loss: Floats) -> str:
    """The SFT loss by step."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(step, loss, color=FIRST, linewidth=1.2)
        axes.set(xlabel="optimiser step", ylabel="loss (nats a token)", ylim=(0, None))

    return svg("losses", "SFT loss by step", draw)


def rewards(
    step: Floats,
    reward: Floats,
    entropy_nats: Floats,
    *,
    models: Sequence[str],
    gold: Sequence[Proportion],
    bias: Sequence[float | None],
) -> str:
    """Reward and entropy by step; beside it what they do not show: gold accuracy and style bias before and after."""

    def draw(figure: Figure) -> None:
        left, middle, right = figure.subplots(1, 3, width_ratios=[2.2, 1, 1])
        left.plot(step, reward, color=FIRST, linewidth=1.2)
        left.set(xlabel="optimiser step", ylabel="mean reward", title="reward (noisy labels), entropy (dotted)")
        sure = left.twinx()
        sure.plot(step, entropy_nats, color=SECOND, linewidth=1.0, linestyle=":")
        sure.set(ylabel="nats a token", ylim=(0, None))
        places = np.arange(len(models))
        shares = np.array([found.share for found in gold])
        ends = [[found.share - found.low for found in gold], [found.high - found.share for found in gold]]
        middle.errorbar(places, shares, yerr=ends, fmt="o", color=SECOND, capsize=3)
        middle.set(title="gold accuracy", ylim=(0.4, 1.02))
        measured = [float("nan") if value is None else value for value in bias]
        right.bar(places, measured, color=SECOND, width=0.5)
        right.axhline(0, color=INK, linewidth=0.8)
        low, high = np.nanmin([-0.1, *measured]) - 0.02, np.nanmax([0.3, *measured]) + 0.05
        right.set(title="style bias" if None not in bias else "style bias: n/a", ylim=(low, high))
        for axes in (middle, right):
            axes.set_xticks(places, models)
            axes.set_xlim(-0.6, len(models) - 0.4)

    return svg("rewards", "Reward and entropy by step, gold accuracy and style bias of both models", draw, (9.0, 2.9))


def histogram(score: Floats, kept: Mask, cuts: Sequence[float], label: str) -> str:
    """Scores of the kept and the dropped samples, with the cut, or one for each predicted answer."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        edges = np.histogram_bin_edges(score, bins=40)
        colours = [FIRST, SECOND]
        axes.hist(
            [score[kept], score[~kept]], bins=edges.tolist(), stacked=True, color=colours, label=["kept", "dropped"]
        )
        for number, cut in enumerate(cuts):
            axes.axvline(cut, color=CUT, linewidth=1.4, linestyle="--", label="" if number else "cut")
        axes.set(xlabel=label, ylabel="samples")
        axes.legend()

    return svg("histogram", f"Histogram of {label}", draw)


def accuracy_bins(name: str, bins: Sequence[Bin], label: str) -> str:
    """Agreement with the labels by decile of an entropy, with Wilson intervals (EGT Fig. 2)."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _intervals(axes, [found.accuracy for found in bins])
        axes.set(xlabel=f"decile of {label}, lowest first", ylabel="agreement with labels", ylim=(0, 1.02))
        axes.set_xticks(range(1, len(bins) + 1))

    return svg(name, f"Agreement with labels by decile of {label}", draw)


def predicted_bins(shares: Sequence[float]) -> str:
    """The share of each predicted answer by decile of the score."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places, first = np.arange(1, len(shares) + 1), np.array(shares)
        axes.bar(places, first, color=FIRST, label="predicted 1")
        axes.bar(places, 1 - first, bottom=first, color=SECOND, label="predicted 2")
        axes.axhline(0.5, color=INK, linewidth=0.8)
        axes.set(xlabel="decile of answer entropy, lowest first", ylabel="share", ylim=(0, 1.18))
        axes.set_xticks(places)
        axes.legend(loc="upper center", ncols=2)

    return svg("predicted", "Share of each predicted answer by decile of answer entropy", draw)


def _intervals(axes: Axes, found: Sequence[Proportion]) -> None:
    places = np.arange(1, len(found) + 1)
    shares = [one.share for one in found]
    ends = [[one.share - one.low for one in found], [one.high - one.share for one in found]]
    axes.plot(places, shares, color=FIRST, linewidth=1)
    axes.errorbar(places, shares, yerr=ends, fmt="o", color=FIRST, capsize=3, markersize=4)
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")

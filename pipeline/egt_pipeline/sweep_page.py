"""A sweep as one HTML page: its tables beside figures from elsewhere, with plots. The page needs nothing but itself."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from egt_pipeline.report import page
from egt_pipeline.report_data import Floats
from egt_pipeline.report_figures import CUT, FIRST, accuracy_bins, svg
from egt_pipeline.sweep_results import Comparison, Outcome, Row

_ROW_INCHES, _FRAME_INCHES = 0.34, 1.1  # of a plot with one line a row
_OURS, _THEIRS = "this sweep, 95 % interval", "reference"


def build_page(outcome: Outcome) -> str:
    """The page of what is known so far."""
    return page("sweep.html.j2").render(
        outcome=outcome,
        plots=[Markup(_plot(comparison)) for comparison in outcome.comparisons],
        entropy_plots=[Markup(accuracy_bins(one.digest, one.bins, "answer entropy")) for one in outcome.by_entropy],
    )


def _plot(comparison: Comparison) -> str:
    """The first column of a table: one line a row, or a curve over the rows when they are points."""
    column = comparison.columns[0]
    draw = _curve if comparison.x is not None else _lines
    rows = list(comparison.rows)
    height = 2.9 if comparison.x is not None else _FRAME_INCHES + _ROW_INCHES * len(rows)

    def figure(canvas: Figure) -> None:
        draw(canvas, rows, column, comparison.x or "")

    return svg(comparison.name, f"{comparison.name}: {column} of each arm", figure, (5.2, height))


def _lines(canvas: Figure, rows: Sequence[Row], column: str, _x: str) -> None:
    axes = canvas.subplots()
    places = np.arange(len(rows))[::-1]
    mean, ends, reference = _percentages(rows, column)
    axes.errorbar(mean, places, xerr=ends, fmt="o", color=FIRST, capsize=3, markersize=5, label=_OURS)
    if np.isfinite(reference).any():
        axes.plot(reference, places, "D", color=CUT, fillstyle="none", markersize=5, label=_THEIRS)
    axes.set_yticks(places, [row.name for row in rows])
    axes.set(xlabel=f"{column} (%)", ylim=(-0.6, len(rows) - 0.4))
    canvas.legend(loc="outside upper left", ncols=2)


def _curve(canvas: Figure, rows: Sequence[Row], column: str, x: str) -> None:
    axes = canvas.subplots()
    points = np.array([float(row.name) for row in rows])
    order = np.argsort(points)
    points, ordered = points[order], [rows[place] for place in order]
    mean, ends, reference = _percentages(ordered, column)
    axes.errorbar(points, mean, yerr=ends, fmt="o-", color=FIRST, capsize=3, markersize=4, label=_OURS)
    if np.isfinite(reference).any():
        axes.plot(points, reference, "D", color=CUT, fillstyle="none", markersize=5, label=_THEIRS)
    axes.set(xlabel=x, ylabel=f"{column} (%)")
    axes.set_xticks(points)
    canvas.legend(loc="outside upper left", ncols=2)


def _percentages(rows: Sequence[Row], column: str) -> tuple[Floats, Floats, Floats]:
    """Means (N), lengths of the intervals below and above them (2, N), and references (N); NaN where there is none."""
    found = [row.found.get(column) for row in rows]
    nan = float("nan")
    mean = [nan if one is None else one.mean for one in found]
    ends = [[nan if one is None else one.mean - one.low for one in found],
            [nan if one is None else one.high - one.mean for one in found]]  # fmt: skip
    reference = [row.reference.get(column, nan) for row in rows]
    return 100 * np.array(mean), 100 * np.array(ends), 100 * np.array(reference)

"""The live view of a local run: a table that moves on a terminal, one line an event everywhere else."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from egt_operator.local_stage import GRACE_SECONDS
from egt_operator.plan import Phase
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest, Metric, Progress

# The figure of a finished stage that people look for first.
_HEADLINE = {
    StageName.PREPARE: "rows",
    StageName.DISTILL: "kept_share",
    StageName.SFT: "loss_last",
    StageName.PROBE: "answer_entropy_nats.mean",
    StageName.CURATE: "kept",
    StageName.RL: "reward_last",
    StageName.EVALUATE: "accuracy",
}
_COLOURS = {Phase.SUCCEEDED: "green", Phase.RUNNING: "cyan", Phase.FAILED: "red", Phase.WAITING: "dim"}
_REFRESHES_A_SECOND = 4


class _Row:
    def __init__(self) -> None:
        self.phase = Phase.WAITING
        self.started = 0.0
        self.seconds = 0.0
        self.attempt = 0
        self.progress: Progress | None = None
        self.figure = ""


class LocalView:
    """Watches a run (see ``local.View``); use as a context manager."""

    def __init__(self, console: Console, run: str, stages: list[StageName]) -> None:
        self._console = console
        self._run = run
        self._rows = {stage: _Row() for stage in stages}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=_REFRESHES_A_SECOND)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def started(self, stage: StageName, attempt: int) -> None:
        """A stage started."""
        row = self._rows[stage]
        row.phase, row.started, row.attempt = Phase.RUNNING, time.monotonic(), attempt
        self._say(stage, "started" if attempt == 1 else f"started, attempt {attempt}")

    def progressed(self, stage: StageName, progress: Progress | None) -> None:
        """Take over the last known progress."""
        row = self._rows[stage]
        row.seconds = time.monotonic() - row.started
        if progress is not None:
            row.progress = progress
            if progress.metric_name and progress.metric_value is not None:
                row.figure = f"{progress.metric_name} {progress.metric_value:.4g}"

    def stopping(self, stage: StageName) -> None:
        """The stage was asked to stop, and has some time for a checkpoint."""
        self._console.print(f"{self._run} {stage}: stopping; a checkpoint may take up to {GRACE_SECONDS:.0f} s",
                            highlight=False, soft_wrap=True)  # fmt: skip

    def ended(self, stage: StageName, phase: Phase, manifest: Manifest | None) -> None:
        """A stage ended, or was found published."""
        row = self._rows[stage]
        row.phase = phase
        if manifest is not None:
            row.figure = _figure(_HEADLINE[stage], manifest.metrics.get(_HEADLINE[stage]))
            bad = manifest.metrics.get("bad_rows")
            row.figure += f", {bad} of them bad (status and reason: preferences.parquet)" if bad else ""
        words = "reused" if phase is Phase.SUCCEEDED and not row.attempt else phase.lower()
        self._say(stage, f"{words}, {row.seconds:.0f} s, {row.figure}".replace(", 0 s", "").removesuffix(", "))

    def seen(self, stage: StageName) -> tuple[Phase, int]:
        """Phase and attempt of a stage as they were last seen; attempt 0: reused, or never started."""
        return self._rows[stage].phase, self._rows[stage].attempt

    def _say(self, stage: StageName, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{self._run} {stage}: {text}", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(title=f"run {self._run}", title_justify="left", expand=False)
        for column in ("stage", "phase", "progress", "elapsed", "metric"):
            table.add_column(column, justify="right" if column == "elapsed" else "left")
        for stage, row in self._rows.items():
            reused = row.phase is Phase.SUCCEEDED and not row.attempt
            colour = _COLOURS.get(row.phase, "")
            words = f"[{colour}]{'Reused' if reused else row.phase}[/]"
            elapsed = f"{row.seconds:.0f} s" if row.attempt else ""
            table.add_row(stage, words, _bar(row), elapsed, row.figure)
        return table


def _bar(row: _Row) -> Table | str:
    if row.progress is None or row.phase is not Phase.RUNNING:
        return ""
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(row.progress.total, 1), completed=row.progress.done, width=20)
    line.add_row(bar, f"{row.progress.done:.0f}/{row.progress.total:.0f} {row.progress.unit}")
    return line


def _figure(name: str, value: Metric) -> str:
    if value is None:
        return ""
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"

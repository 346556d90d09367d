"""Prometheus metrics and JSON logs of the operator."""

import json
import logging
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from egt_operator.api_status import EGTRunStatus
from egt_operator.plan import Phase

_STAGE_SECONDS = (10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)
_QUEUE_SECONDS = (1, 10, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_RECONCILE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Telemetry:
    """The metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.runs = Gauge("egt_runs", "Runs by phase.", ["phase"], **made)
        self.stage_seconds = Histogram(
            "egt_stage_seconds", "From a stage's first attempt to its end.", ["stage", "outcome"],
            buckets=_STAGE_SECONDS, **made,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "egt_queue_seconds", "What a stage waited for its pods, over all attempts.", ["stage"],
            buckets=_QUEUE_SECONDS, **made,
        )  # fmt: skip
        self.attempts = Counter(
            "egt_failed_attempts_total", "Attempts that failed.", ["stage", "failure_class"], **made
        )
        self.gpu_hours = Counter("egt_gpu_hours_total", "GPU-hours: used, wasted, saved by reuse.", ["kind"], **made)
        self.reconcile_seconds = Histogram(
            "egt_reconcile_seconds", "One look at one run.", ["result"], buckets=_RECONCILE_SECONDS, **made
        )
        self.queue_depth = Gauge("egt_queue_depth", "Runs that wait for a look.", **made)
        self.missed_events = Counter("egt_missed_events_total", "What a comparison with the API server found.", **made)
        self.watch_age = Gauge("egt_watch_age_seconds", "Since anything was heard from a watch.", **made)
        self._phases: dict[str, str] = {}

    def run_is(self, key: str, phase: str | None) -> None:
        """Count ``key`` under ``phase``; None: it is gone."""
        before = self._phases.pop(key, None)
        if before is not None:
            self.runs.labels(before).dec()
        if phase is not None:
            self._phases[key] = phase
            self.runs.labels(phase).inc()

    def changed(self, before: EGTRunStatus | None, after: EGTRunStatus) -> None:
        """Count what ended between two statuses."""
        old = {stage.name: stage for stage in before.stages} if before is not None else {}
        for stage in after.stages:
            was = old.get(stage.name)
            failure = stage.last_failure
            if failure is not None and (was is None or was.last_failure != failure):
                self.attempts.labels(stage.name, failure.kind).inc()
            if stage.phase in (Phase.SUCCEEDED, Phase.FAILED) and (was is None or was.phase is not stage.phase):
                if stage.started and stage.finished:
                    seconds = (stage.finished - stage.started).total_seconds()
                    self.stage_seconds.labels(stage.name, stage.phase).observe(seconds)
                if stage.queue_seconds is not None:
                    self.queue_seconds.labels(stage.name).observe(stage.queue_seconds)
            for kind in ("used", "wasted", "saved"):
                now, then = (getattr(s.gpu_hours, kind) if s and s.gpu_hours else 0.0 for s in (stage, was))
                if now > then:
                    self.gpu_hours.labels(kind).inc(now - then)


class JsonLines(logging.Formatter):
    """One JSON object a record; what was given as ``extra`` under ``run``, ``stage`` and ``attempt`` is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        line |= {name: getattr(record, name) for name in ("run", "stage", "attempt") if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)

"""What the pods of our stages say when they end, without doing anything: the script of simulated nodes."""

import json
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from egt_operator.render import ATTEMPT_LABEL, RUN_LABEL, STAGE_LABEL, TASK_ANNOTATION
from fake_stages import CONTENT
from node_script import Ending

Endings = dict[tuple[str, int], Ending]


class SimulatedStages:
    """Every attempt ends well after ``seconds``, unless ``endings`` says otherwise for (stage, attempt) of a run.

    ``spread`` is the share by which the time varies from pod to pod, evenly, so that not all end at once.
    """

    def __init__(self, seconds: float = 0.5, spread: float = 0.0) -> None:
        self.seconds, self.spread, self._random = seconds, spread, random.Random(0)
        self.endings: dict[str, Endings] = defaultdict(dict)
        self.published: dict[str, set[str]] = defaultdict(set)
        """Stages that are published, by the store of their run."""
        self.watch: Callable[[dict[str, Any]], None] = lambda _: None

    def __call__(self, pod: dict[str, Any]) -> Ending:
        """How the pod ends; pods of anybody else run until they are deleted."""
        self.watch(pod)
        labels = pod["metadata"].get("labels") or {}
        if RUN_LABEL not in labels:
            return Ending(seconds=None)
        place = labels[STAGE_LABEL], int(labels[ATTEMPT_LABEL])
        ending = self.endings[labels[RUN_LABEL]].get(place)
        if ending is not None:
            return ending
        task = json.loads(pod["metadata"]["annotations"][TASK_ANNOTATION])
        seconds = self.seconds * self._random.uniform(1 - self.spread, 1 + self.spread)
        return Ending(seconds=seconds, message=self._summary(task))

    def _summary(self, task: dict[str, Any]) -> str:
        stage, there = task["stage"], self.published[task["store"]["uri"]]
        prepare = stage == "prepare"
        news = {f"published.{name}": True for name in sorted(there)} | {"rows": 100}
        there.add(stage)
        metrics = news if prepare else {"final.accuracy": 0.9}
        return json.dumps({"stage": stage, "digest": task["digest"] or "fa11ba5e00000000", "phase": "Succeeded",
                           "exit_code": 0, "content": CONTENT if prepare else {}, "metrics": metrics})  # fmt: skip

"""Why pods of jobs cannot be made: training-operator says it in Events only."""

import asyncio
from collections.abc import Callable

from egt_operator.children import Job
from egt_operator.cluster import Cluster, Unmade

# Between lists of a namespace's events: the API server reads all of them from its disk, whatever is asked for.
_EVERY_SECONDS = 10.0


class UnmadePods:
    """Asks once for all jobs of a namespace, and not again for a while. ``clock`` is monotonic seconds."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float]) -> None:
        self._cluster, self._clock = cluster, clock
        self._asked: dict[str, tuple[float, asyncio.Task[dict[str, Unmade]]]] = {}

    async def why(self, namespace: str, job: Job) -> str:
        """What was said last of pods of this job, since they are wanted; empty: nothing."""
        at, answer = self._asked.get(namespace, (float("-inf"), None))
        old = self._clock() - at >= _EVERY_SECONDS
        if answer is None or (answer.done() and (old or answer.cancelled() or answer.exception())):
            answer = asyncio.create_task(self._cluster.unmade_pods(namespace))
            self._asked[namespace] = self._clock(), answer
        said = (await asyncio.shield(answer)).get(job.uid)  # others may wait for it too
        return said.message if said is not None and said.time >= job.wanted else ""

"""A runtime for tests of the operator's own pods: theirs are processes, those of runs are simulated."""

from node_agent import NodeAgent
from node_pod import NodePod
from node_script import SimulatedPods
from process_pods import ProcessPods


class PodsByNamespace:
    """Pods of ``namespace`` are processes, all others end by script."""

    def __init__(self, namespace: str, processes: ProcessPods, simulated: SimulatedPods) -> None:
        self._namespace, self._processes, self._simulated = namespace, processes, simulated
        self.network, self.port = processes.network, processes.port

    def _of(self, pod: NodePod) -> ProcessPods | SimulatedPods:
        return self._processes if pod.namespace == self._namespace else self._simulated

    async def start(self, agent: NodeAgent) -> None:
        """Both are ready."""
        await self._processes.start(agent)
        await self._simulated.start(agent)

    async def run(self, pod: NodePod) -> None:
        """Returns when the pod has ended."""
        await self._of(pod).run(pod)

    async def stop(self) -> None:
        """Nothing of either is left."""
        await self._processes.stop()
        await self._simulated.stop()

    def forget(self, pod: NodePod) -> None:
        """Nothing of the pod is left."""
        self._of(pod).forget(pod)

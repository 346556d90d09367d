"""A whole cluster for tests: real control plane, real training-operator, real S3 server, and nodes whose
pods are local processes or end by script."""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # the S3 server lies with the tests of everything

from cluster_binaries import binary
from control_plane import ControlPlane, control_plane
from node_agent import NodeAgent, NodeShape, Runtime, node_agent
from node_script import Script, SimulatedPods, annotated
from process_pods import ProcessPods, why_not
from s3_server import KEY, SECRET, S3Server, s3_server
from training_operator import training_operator


@dataclass(frozen=True)
class Cluster:
    """What a test sees of it."""

    plane: ControlPlane
    agent: NodeAgent
    s3: S3Server

    @property
    def kubeconfig(self) -> Path:
        return self.plane.kubeconfig

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises RuntimeError with kubectl's own words when it fails."""
        return self.plane.kubectl(*args, stdin=stdin)

    def helm(self, *args: str) -> str:
        """What helm prints. Raises RuntimeError with helm's own words when it fails."""
        command = [str(binary("helm")), "--kubeconfig", str(self.kubeconfig), *args]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"helm {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout


def simulated(script: Script = annotated) -> Callable[[ControlPlane], Runtime]:
    """Pods that end as the script says, on any machine."""
    return lambda _: SimulatedPods(script)


@contextlib.contextmanager
def running_cluster(shape: NodeShape, runtime: Callable[[ControlPlane], Runtime] | None = None) -> Iterator[Cluster]:
    """A cluster whose pods the runtime runs (by default: simulated); nothing of it is left afterwards."""
    with (
        control_plane() as plane,
        training_operator(plane),
        s3_server() as s3,
        node_agent(plane.kubeconfig, plane.folder, shape, (runtime or simulated())(plane)) as agent,
    ):
        yield Cluster(plane, agent, s3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["up"], help="start the cluster and run until Ctrl-C")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument(
        "--gpus", type=int, default=8, help="nvidia.com/gpu of each node; there are none, they only count"
    )
    parser.add_argument("--simulate", action="store_true", help="pods end by script; no process is started")
    given = parser.parse_args()
    reason = why_not()
    if reason and not given.simulate:
        sys.exit(f"{reason}; with --simulate pods end by script")
    # All end it as Ctrl-C does, so that it leaves nothing behind; in the background a shell has SIGINT ignored.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    shape = NodeShape(nodes=given.nodes, gpus=given.gpus)
    with (
        contextlib.suppress(KeyboardInterrupt),
        running_cluster(shape, simulated() if given.simulate else ProcessPods) as cluster,
    ):
        print(f"export KUBECONFIG={cluster.kubeconfig}")
        print(f"export AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET}")
        print(f"export PATH={binary('helm').parent}:$PATH  # kubectl, helm")
        print(f"# S3 on {cluster.s3.endpoint}; a bucket is a folder in {cluster.s3.folder}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()

"""A whole cluster for tests: real control plane, real training-operator, real S3 server, simulated nodes."""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # the S3 server lies with the tests of everything

from cluster_binaries import binary
from control_plane import ControlPlane, control_plane
from node_agent import NodeAgent, NodeShape, node_agent
from node_script import Script, annotated
from s3_server import S3Server, s3_server
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


@contextlib.contextmanager
def running_cluster(shape: NodeShape, script: Script = annotated) -> Iterator[Cluster]:
    """A cluster whose pods end as the script says; nothing of it is left afterwards."""
    with (
        control_plane() as plane,
        training_operator(plane),
        s3_server() as s3,
        node_agent(plane.kubeconfig, plane.folder, shape, script) as agent,
    ):
        yield Cluster(plane, agent, s3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["up"], help="start the cluster and run until Ctrl-C")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=8, help="nvidia.com/gpu of each node")
    given = parser.parse_args()
    # kill ends it as Ctrl-C does, so that it leaves nothing behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        running_cluster(NodeShape(nodes=given.nodes, gpus=given.gpus)) as cluster,
    ):
        print(f"KUBECONFIG={cluster.kubeconfig}\nS3={cluster.s3.endpoint}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()

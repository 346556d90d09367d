"""A node of the leader's Ray: ``python -m egt_pipeline.openrlhf_entry.node RUN_FILE`` is one until that Ray ends."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time

from egt_pipeline.openrlhf_entry.machine import has_cuda
from egt_pipeline.orphans import die_with_parent
from egt_pipeline.rl_run import RUN_FILE_VARIABLE, RunFile, current_run, logical_devices, pod_resource

OBJECT_STORE_BYTES = 200 * 2**20  # a rollout of 256 samples with their pixels; more of it spills to disk
STARTS, START_SECONDS = 6, 30.0
"""Of Ray: so long it gives its processes, no setting, which is too little where cores are busy."""
WAIT_SECONDS = 0.5  # between looks at whether the others are there


def join(run: RunFile) -> int:
    """Be a node of the leader's Ray, which may have to start several times; the exit code when it has ended for good.

    Whoever started this process ends it when the leader is done.
    """
    command = [sys.executable, "-m", "egt_pipeline.openrlhf_entry.node", os.environ[RUN_FILE_VARIABLE]]
    deadline = time.monotonic() + STARTS * START_SECONDS
    while True:
        _wait_for_leader(run)
        began = time.monotonic()
        code = subprocess.run(command, check=False).returncode
        if time.monotonic() - began > 2 * START_SECONDS or began > deadline:  # it had joined, and what it was in ended
            return code
        end_children()
        time.sleep(WAIT_SECONDS)


def end_children() -> None:
    """What a start that failed has left behind."""
    import psutil

    left = psutil.Process().children(recursive=True)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)


def _wait_for_leader(run: RunFile) -> None:
    while True:
        try:
            socket.create_connection((run.peers.address, run.peers.port), timeout=5).close()
        except OSError:
            time.sleep(WAIT_SECONDS)  # its pod is known to be there: Ray is still starting
        else:
            return


def own_address() -> str:
    """This pod's address, as the kubelet writes it beside the pod's name into /etc/hosts."""
    return socket.gethostbyname(socket.gethostname())


def promised(run: RunFile) -> dict[str, int]:
    """What Ray is told this machine has where it cannot see for itself."""
    devices = logical_devices(run)
    return {} if has_cuda() else {"num_cpus": devices, "num_gpus": devices}


def main(run_file: str) -> None:
    """Join, and end with what was joined."""
    die_with_parent()
    os.environ[RUN_FILE_VARIABLE] = run_file
    run = current_run()
    flags = {
        "address": f"{socket.gethostbyname(run.peers.address)}:{run.peers.port}",
        "node-ip-address": own_address(),
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": run.ray_folder,
        "resources": json.dumps({pod_resource(run.peers.rank): 1}),
        **{name.replace("_", "-"): count for name, count in promised(run).items()},
    }
    sys.argv = ["ray", "start", "--block", *(f"--{name}={value}" for name, value in flags.items())]
    runpy.run_module("ray.scripts.scripts", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])

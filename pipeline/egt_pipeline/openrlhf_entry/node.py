"""Ray over a run's pods: the leader starts it, the others join.

``python -m egt_pipeline.openrlhf_entry.node RUN_FILE`` is a node of the leader's Ray until that ends.
"""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
import traceback
from typing import Any

from egt_pipeline.contract.errors import EgtError
from egt_pipeline.openrlhf_entry.machine import has_cuda
from egt_pipeline.orphans import die_with_parent
from egt_pipeline.rl_run import RUN_FILE_VARIABLE, RunFile, current_run, logical_devices, pod_resource

_OBJECT_STORE_BYTES = 200 * 2**20  # a rollout of 256 samples with their pixels; more of it spills to disk
_STARTS, _START_SECONDS = 6, 30.0
"""Of Ray: so long it gives its processes, no setting, which is too little where cores are busy."""
_TOO_SLOW = "timed out during startup"  # of Ray's message
_NOT_JOINED = 3  # of the exit codes of `ray start` none
_WAIT_SECONDS = 0.5  # between looks at whether the others are there


def lead(run: RunFile) -> None:
    """Start the run's Ray, which no other run can be in; returns once each pod has joined.

    Loading models before that would leave the others' Ray too little time to start. Raises EgtError when Ray does not
    start.
    """
    import ray

    _start(run)
    pods = {pod_resource(rank) for rank in range(run.peers.size)}
    # A pod that had to join twice is two nodes for a while.
    while not pods <= {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]}:
        time.sleep(_WAIT_SECONDS)


def _start(run: RunFile) -> None:
    import ray

    open_to_others: dict[str, Any] = {}
    if run.peers.size > 1:
        os.environ["RAY_GCS_SERVER_PORT"] = str(run.peers.port)
        open_to_others = {"_node_ip_address": _own_address()}
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",  # never somebody else's
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(run.ray_folder),
                resources={pod_resource(0): 1},
                **open_to_others,
                **_promised(run),
            )
            return
        except Exception as error:  # Ray raises no kind of its own
            if _TOO_SLOW not in str(error):
                raise
            _end_children()
            if not left:
                raise EgtError(
                    f"rl: Ray did not start in {_STARTS} times {_START_SECONDS:.0f} s; "
                    "too much else runs on this machine"
                ) from None
            print(f"rl: Ray did not start within {_START_SECONDS:.0f} s; {left} more tries", flush=True)


def join(run: RunFile) -> int:
    """Be a node of the leader's Ray, which may have to start several times; the exit code when it has ended for good.

    Whoever started this process ends it when the leader is done.
    """
    command = [sys.executable, "-m", "egt_pipeline.openrlhf_entry.node", os.environ[RUN_FILE_VARIABLE]]
    deadline = time.monotonic() + 2 * _STARTS * _START_SECONDS  # the leader may need all its starts before
    while True:
        _wait_for_leader(run)
        code = subprocess.run(command, check=False).returncode
        if code != _NOT_JOINED or time.monotonic() > deadline:
            return code
        _end_children()
        time.sleep(_WAIT_SECONDS)


def _end_children() -> None:
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
            time.sleep(_WAIT_SECONDS)  # its pod is known to be there: Ray is still starting
        else:
            return


def _own_address() -> str:
    """This pod's address, as the kubelet writes it beside the pod's name into /etc/hosts."""
    return socket.gethostbyname(socket.gethostname())


def _promised(run: RunFile) -> dict[str, int]:
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
        "node-ip-address": _own_address(),
        "object-store-memory": _OBJECT_STORE_BYTES,
        "temp-dir": run.ray_folder,
        "resources": json.dumps({pod_resource(run.peers.rank): 1}),
        **{name.replace("_", "-"): count for name, count in _promised(run).items()},
    }
    sys.argv = ["ray", "start", "--block", *(f"--{name}={value}" for name, value in flags.items())]
    try:
        runpy.run_module("ray.scripts.scripts", run_name="__main__", alter_sys=True)
    except Exception:  # once it has joined, its end is a SystemExit
        traceback.print_exc()
        sys.exit(_NOT_JOINED)


if __name__ == "__main__":
    main(sys.argv[1])

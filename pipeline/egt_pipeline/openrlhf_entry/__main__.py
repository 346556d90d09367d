"""``python -m egt_pipeline.openrlhf_entry RUN_FILE``: OpenRLHF's own training command on a Ray of its own.

In the leader's pod it starts Ray and trains; in the others it joins that Ray and works for it until it ends.
Exits with a code of contract/errors.py; a failure with a meaning of its own is written to the run's ``failure`` file.
"""

import json
import os
import runpy
import sys
import time
from typing import Any

from egt_pipeline.contract.errors import EXIT_DONE, EgtError
from egt_pipeline.openrlhf_entry.machine import has_cuda
from egt_pipeline.openrlhf_entry.node import (
    OBJECT_STORE_BYTES,
    START_SECONDS,
    STARTS,
    WAIT_SECONDS,
    end_children,
    join,
    own_address,
    promised,
)
from egt_pipeline.orphans import die_with_parent
from egt_pipeline.rl_run import RUN_FILE_VARIABLE, RunFile, arguments, current_run, pod_resource

_TOO_SLOW = "timed out during startup"  # of Ray's message


def main(run_file: str) -> int:
    """Train as the run file says; return the exit code."""
    os.environ[RUN_FILE_VARIABLE] = run_file
    run = current_run()
    die_with_parent(run.parent)
    if not run.peers.leads:
        return join(run)
    try:
        _start_ray(run)
        _wait_for_others(run)
        _train(run)
    except EgtError as error:
        reason = getattr(error, "cause", error)  # Ray wraps what a worker raised, traceback and all
        run.failure.write_text(json.dumps({"exit_code": error.exit_code, "message": str(reason)}))
        return error.exit_code
    return EXIT_DONE


def _start_ray(run: RunFile) -> None:
    import ray

    open_to_others: dict[str, Any] = {}
    if run.peers.size > 1:
        os.environ["RAY_GCS_SERVER_PORT"] = str(run.peers.port)
        open_to_others = {"_node_ip_address": own_address()}
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",  # never somebody else's
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(run.ray_folder),
                resources={pod_resource(0): 1},
                **open_to_others,
                **promised(run),
            )
            return
        except Exception as error:  # Ray raises no kind of its own
            if _TOO_SLOW not in str(error):
                raise
            end_children()
            if not left:
                raise EgtError(
                    f"rl: Ray did not start in {STARTS} times {START_SECONDS:.0f} s; too much else runs on this machine"
                ) from None
            print(f"rl: Ray did not start within {START_SECONDS:.0f} s; {left} more tries", flush=True)


def _wait_for_others(run: RunFile) -> None:
    """Returns once each pod has joined: loading models meanwhile would leave their Ray too little time to start."""
    import ray

    while sum(node["Alive"] for node in ray.nodes()) < run.peers.size:
        time.sleep(WAIT_SECONDS)


def _train(run: RunFile) -> None:
    from egt_pipeline.openrlhf_entry import actors

    actors.put_in_place()
    sys.argv = ["train_ppo_ray", *arguments(run, cuda=has_cuda())]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

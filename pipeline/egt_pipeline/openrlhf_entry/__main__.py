"""``python -m egt_pipeline.openrlhf_entry RUN_FILE``: OpenRLHF's own training command on a Ray of its own.

In the leader's pod it starts Ray and trains; in the others it joins that Ray and works for it until it ends.
Exits with a code of contract/errors.py; a failure with a meaning of its own is written to the run's ``failure`` file.
"""

import json
import os
import runpy
import sys

from egt_pipeline.contract.errors import EXIT_DONE, EgtError
from egt_pipeline.gpus import no_room
from egt_pipeline.openrlhf_entry.machine import has_cuda
from egt_pipeline.openrlhf_entry.node import join, lead
from egt_pipeline.orphans import die_with_parent
from egt_pipeline.rl_run import RUN_FILE_VARIABLE, RunFile, arguments, current_run


def main(run_file: str) -> int:
    """Train as the run file says; return the exit code."""
    os.environ[RUN_FILE_VARIABLE] = run_file
    run = current_run()
    die_with_parent(run.parent)
    if not run.peers.leads:
        return join(run)
    try:
        lead(run)
        _train(run)
    except Exception as error:
        failed = error if isinstance(error, EgtError) else no_room("rl", error)
        if failed is None:
            raise
        reason = getattr(failed, "cause", failed)  # Ray wraps what a worker raised, traceback and all
        run.failure.write_text(json.dumps({"exit_code": failed.exit_code, "message": str(reason)}))
        return failed.exit_code
    return EXIT_DONE


def _train(run: RunFile) -> None:
    from egt_pipeline.openrlhf_entry import actors

    actors.put_in_place()
    sys.argv = ["train_ppo_ray", *arguments(run, cuda=has_cuda())]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Who may drive a local run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from egt_operator.local_lock import only_one
from egt_pipeline.contract.errors import TaskError


def test_a_second_call_is_told_which_process_holds_the_run(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(TaskError, match=f"process {os.getpid()};"), only_one(tmp_path):
        pass


def test_what_a_killed_call_left_is_waited_for(tmp_path: Path) -> None:
    # The child takes the lock, hands it to a grandchild that lives a moment longer, and dies.
    script = (
        "import os, subprocess, sys; from pathlib import Path; from egt_operator.local_lock import only_one\n"
        "with only_one(Path(sys.argv[1])) as lock:\n"
        "    subprocess.Popen(['sh', '-c', 'sleep 1; touch ended'], cwd=sys.argv[1], pass_fds=(lock,))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    with only_one(tmp_path):
        assert (tmp_path / "ended").exists()


def test_the_lock_is_free_after_a_call(tmp_path: Path) -> None:
    for _ in range(2):
        with only_one(tmp_path):
            pass

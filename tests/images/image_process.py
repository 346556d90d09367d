"""A command in an image's root file system, as a restricted pod runs it: process 1, any user, nothing to write to."""

import json
import subprocess
import sys
from pathlib import Path

from container import MAIN
from pod_image import PodImage

ANY_USER = 4242


def start(image: PodImage, command: list[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """The running command; ``folder`` is its own and empty. SIGTERM to it reaches the command, and so its exit code."""
    box = {
        "folder": str(folder), "root": str(image.root), "hostname": "pod", "command": command, "directory": "/",
        "environment": {**image.environment, "HOME": "/", **variables}, "shown": [], "mounts": [],
        "memory_group": None, "user": ANY_USER, "group": ANY_USER, "read_only_root": True,
        "no_new_privileges": True, "drop_capabilities": True,
    }  # fmt: skip
    told = folder / "box.json"
    told.write_text(json.dumps(box))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(MAIN), str(told)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(image: PodImage, command: list[str], folder: Path, **variables: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    with start(image, command, folder, **variables) as process:
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

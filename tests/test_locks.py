"""The locks are what their sources resolve to, and install where the images install them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from locked import REQUIREMENTS, locked

UV = str(Path(sys.executable).with_name("uv"))


@pytest.mark.parametrize(
    ("lock", "python"), [("operator", "3.11"), ("gpu", "3.12"), ("build", "3.11"), ("build", "3.12")]
)
def test_an_image_can_install_every_package_of_its_lock(lock: str, python: str, tmp_path: Path) -> None:
    where = ["--target", str(tmp_path), "--python-version", python, "--python-platform", "x86_64-manylinux_2_36"]
    command = [UV, "pip", "install", "--dry-run", "--require-hashes", "--no-deps", *where, "-r", f"{lock}.txt"]
    done = subprocess.run(command, cwd=REQUIREMENTS, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    added = dict(line[3:].split("==") for line in done.stderr.splitlines() if line.startswith(" + "))
    assert added == locked(lock)


def test_every_lock_is_what_its_sources_resolve_to(tmp_path: Path) -> None:
    """Half a minute, most of it waiting for the package index."""
    copy = shutil.copytree(REQUIREMENTS, tmp_path / "requirements")
    path = f"{Path(UV).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(copy / "lock.sh")], check=False, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr
    stale = [file.name for file in REQUIREMENTS.glob("*.txt") if file.read_text() != (copy / file.name).read_text()]
    assert stale == [], "run `make lock`"


def test_the_cuda_compiler_of_the_pipeline_is_of_the_release_that_its_headers_are_of() -> None:
    """DeepSpeed compiles its optimizer where it runs; headers of CUDA 13.0 refuse the compiler of 13.5."""
    pins = locked("gpu")
    releases = {name: pins[name].split(".")[:2] for name in ("nvidia-cuda-runtime", "nvidia-cuda-nvcc", "nvidia-nvvm")}
    assert len({tuple(release) for release in releases.values()}) == 1, releases

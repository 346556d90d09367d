"""The system that the pipeline's image puts its packages on; these are 8 GB, and are resolved in test_locks.py only."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import process_pods
from image_build import built, mounted, why_not
from image_process import run, start
from pod_image import PodImage

REASON = why_not() or process_pods.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
# A child that leaves a child of its own, as `ray start` does; then what is left of that one, seen from the command.
ORPHAN = """
import os, pathlib, time
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    os._exit(0)
os.wait()
deadline = time.monotonic() + 5
def dead():
    return [s for s in pathlib.Path("/proc").glob("[0-9]*/stat") if s.read_text().rpartition(")")[2].split()[0] == "Z"]
while dead() and time.monotonic() < deadline:
    time.sleep(0.05)
print(len(dead()))
"""
STAGE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def image() -> Iterator[PodImage]:
    with mounted(built("pipeline", "--target", "system")) as found:
        yield found


def test_the_entry_point_runs_a_stage_below_an_init_process(image: PodImage) -> None:
    assert image.entrypoint == ["tini", "--", "python", "-m", "egt_pipeline"]


def test_what_a_stage_leaves_behind_is_reaped_by_the_init_process_and_only_by_it(
    image: PodImage, tmp_path: Path
) -> None:
    for init, left in (["tini", "--"], "0\n"), ([], "1\n"):
        (folder := tmp_path / f"{len(init)}").mkdir()
        assert run(image, [*init, "python3", "-c", ORPHAN], folder) == (0, left)


def test_a_request_to_end_reaches_the_stage_and_its_exit_code_comes_back(image: PodImage, tmp_path: Path) -> None:
    with start(image, ["tini", "--", "python3", "-c", STAGE], tmp_path) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143


def test_kernels_can_be_compiled_against_its_python(image: PodImage, tmp_path: Path) -> None:
    compile_it = "echo '#include <Python.h>' | g++ $(python3-config --includes) -fsyntax-only -x c++ -"
    assert run(image, ["sh", "-c", compile_it], tmp_path, TMPDIR="/dev/shm") == (0, "")


def test_infiniband_is_found_where_there_is_some(image: PodImage, tmp_path: Path) -> None:
    assert run(image, ["python3", "-c", "import ctypes; ctypes.CDLL('libibverbs.so.1')"], tmp_path) == (0, "")

"""The operator's image: what is in it, how it runs in a restricted pod, and a whole run reconciled out of it."""

import json
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import process_pods
from cluster import Cluster, running_cluster
from control_plane import wait_for
from image_build import ROOT, built, configuration, mounted, why_not
from image_process import run
from locked import locked
from node_agent import NodeShape
from node_script import SimulatedPods
from pod_image import PodImage
from pods_by_namespace import PodsByNamespace
from process_pods import ProcessPods
from simulated_stages import SimulatedStages
from team_runs import apply, status

REASON = why_not() or process_pods.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAME = f"egt-operator:{VERSION}"
# Of what lies above the base: twice what the Kubernetes client, the largest, takes.
LARGEST_MIB = 250


@pytest.fixture(scope="module")
def image() -> Iterator[PodImage]:
    with mounted(built("operator")) as found:
        yield found


def test_it_holds_the_lock_and_this_package_and_nothing_else(image: PodImage) -> None:
    (packages,) = image.root.glob("opt/egt/lib/python3.*/site-packages")
    found = {canonicalize_name(one.name): one.version for one in distributions(path=[str(packages)])}
    assert found == locked("operator") | {"egt": VERSION}
    assert "torch" not in found


def test_no_torch_can_be_imported_from_anywhere_in_it(image: PodImage, tmp_path: Path) -> None:
    look = "import importlib.util as u; print([u.find_spec(name) is not None for name in ('torch', 'kopf')])"
    assert run(image, ["python", "-c", look], tmp_path) == (0, "[False, True]\n")


def test_what_lies_above_the_base_is_small(image: PodImage) -> None:
    size = sum(entry.lstat().st_size for entry in (image.root / "opt").rglob("*") if not entry.is_dir())
    assert 50 < size / 2**20 < LARGEST_MIB


def test_nobody_owns_or_may_change_anything_of_it(image: PodImage) -> None:
    entries = [entry.lstat() for entry in (image.root / "opt").rglob("*") if not entry.is_symlink()]
    assert {(entry.st_uid, entry.st_mode & 0o022) for entry in entries} == {(0, 0)}


def test_it_says_who_runs_what_and_from_which_sources_it_is() -> None:
    said = configuration(built("operator"))
    assert (said["User"], said["Entrypoint"]) == ("65532:65532", ["python", "-m", "egt_operator"])
    assert said["Labels"]["org.opencontainers.image.version"] == VERSION
    assert len(said["Labels"]["org.opencontainers.image.revision"]) == 40


def test_any_user_runs_it_with_nothing_to_write_to(image: PodImage, tmp_path: Path) -> None:
    assert run(image, image.entrypoint, tmp_path) == (1, "EGT_IMAGE: is missing\n")


def test_the_command_line_is_in_it(image: PodImage, tmp_path: Path) -> None:
    code, text = run(image, ["egt", "--help"], tmp_path)
    assert code == 0, text
    assert "verify" in text


@pytest.fixture(scope="module")
def cluster(image: PodImage) -> Iterator[Cluster]:
    """A cluster whose namespace egt-system takes restricted pods only, and whose operator comes out of the image."""
    stages = SimulatedPods(SimulatedStages())
    with running_cluster(
        NodeShape(), lambda plane: PodsByNamespace("egt-system", ProcessPods(plane, {NAME: image}), stages)
    ) as running:
        for name in ("egt-system", "team"):
            running.kubectl("create", "namespace", name)
        running.kubectl("label", "namespace", "egt-system", "pod-security.kubernetes.io/enforce=restricted")
        chart = str(ROOT / "charts" / "egt-operator")
        running.helm("install", "egt", chart, "-n", "egt-system", "--wait", "--timeout", "120s")
        yield running


def from_image(process: Path) -> bool:
    """Whether the process is an operator that has loaded libraries of the image: only there is /opt/egt."""
    try:
        command, maps = (process / "cmdline").read_bytes(), (process / "maps").read_text()
    except OSError:
        return False  # it has ended
    return b"\0egt_operator\0" in command and "/opt/egt/lib/" in maps


def test_the_operator_out_of_the_image_takes_a_run_to_its_end(cluster: Cluster) -> None:
    pods = json.loads(cluster.kubectl("get", "pods", "-n", "egt-system", "-o", "json"))["items"]
    assert {box["image"] for pod in pods for box in pod["spec"]["containers"]} == {NAME}
    assert sum(map(from_image, Path("/proc").glob("[0-9]*"))) == len(pods) == 2
    apply(cluster, "small")
    wait_for("the run is complete", lambda: status(cluster, "small").get("phase") == "Complete", 120)


def test_helm_test_runs_out_of_the_image_too(cluster: Cluster) -> None:
    assert "Phase:          Succeeded" in cluster.helm("test", "egt", "-n", "egt-system")


def test_it_ends_when_it_is_asked_to(cluster: Cluster) -> None:
    """A process 1 that did not hear SIGTERM would stay for the 30 seconds of its grace period."""
    cluster.kubectl("delete", "pods", "--all", "-n", "egt-system", "--timeout=15s")

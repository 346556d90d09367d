import importlib.util
import re
import socket
import sqlite3
from pathlib import Path

import pytest

from egt_pipeline.context import Context
from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.tracking import Tracking
from egt_pipeline.store_file import FileWork
from egt_pipeline.tracking import tracked
from event_files import scalars

_LOSSES = {1: 2.5, 2: 1.25, 3: 0.5}


def _log(folder: Path, tracking: Tracking | None) -> Path:
    """The figures of three steps, logged by an attempt; its artifact."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    context = Context(scratch, FileWork(folder / "work"), {}, name="demo-sft-a1", tracking=tracking)
    with tracked(context, SFTRecipe(), out) as log:
        for step, loss in _LOSSES.items():
            log(step, {"loss": loss})
    return out / "tracking"


def test_tensorboard_shows_every_step_without_any_service(tmp_path: Path) -> None:
    assert scalars(_log(tmp_path, None), "loss") == _LOSSES


def test_wandb_offline_leaves_its_files_in_the_artifact(tmp_path: Path) -> None:
    folder = _log(tmp_path, Tracking(service="wandb", offline=True, project="rewards"))
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    said = path.read_bytes()  # W&B brings no reader of its protocol buffers: name, tag and length, value
    assert b"demo-sft-a1" in said
    places = [(match.end(), match[1][0]) for match in re.finditer(rb"\x04loss\x82\x01(.)", said, re.DOTALL)]
    found = [said[start : start + length] for start, length in places]  # as history, and as the summary so far
    assert list(dict.fromkeys(found)) == [b"2.5", b"1.25", b"0.5"]
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert scalars(folder, "loss") == _LOSSES


def test_mlflow_offline_leaves_its_files_in_the_artifact(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    folder = _log(tmp_path, Tracking(service="mlflow", offline=True, project="rewards"))
    client = mlflow.MlflowClient(f"file://{folder}/mlruns")
    (run,) = client.search_runs([client.get_experiment_by_name("rewards").experiment_id])
    assert run.info.run_name == "demo-sft-a1"
    assert {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")} == _LOSSES
    assert run.data.params["learning_rate"] == "1e-05"


def test_trackio_offline_leaves_its_database_in_the_artifact(tmp_path: Path) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")  # unlike importorskip this imports nothing: trackio asks for its folder

    folder = _log(tmp_path, Tracking(service="trackio", offline=True, project="rewards"))
    with sqlite3.connect(folder / "rewards.db") as database:
        rows = database.execute("select run_name, step from metrics order by step").fetchall()
    assert rows == [("demo-sft-a1", step) for step in _LOSSES]


@pytest.mark.parametrize("service", ["mlflow", "trackio"])
def test_a_service_whose_package_is_missing_is_an_error_of_the_task(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, service, None)  # what an import of a missing package meets
    tracking = Tracking.model_validate({"service": service, "offline": True})
    with pytest.raises(TaskError, match=rf"tracking.service: '{service}' needs the package {service}"):
        _log(tmp_path, tracking)


def test_wandb_without_a_key_is_an_error_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(TaskError, match="WANDB_API_KEY is not set"):
        _log(tmp_path, Tracking(service="wandb"))


def test_a_server_that_nobody_runs_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=rf"tracking: {address} cannot be used"):
            _log(tmp_path, Tracking(service="mlflow", address=address))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"service": "mlflow"}, "address: is missing; mlflow needs it, or offline: true"),
        ({"service": "wandb", "offline": True, "address": "http://w"}, "is not accepted with offline: true"),
    ],
)
def test_tracking_that_leads_nowhere_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tracking.model_validate(fields)

"""Figures of a training while it goes on: TensorBoard's event files always, a tracking service where one is named.

Event files lie in ``tracking/`` of the folder that becomes the artifact. An attempt that goes on from a checkpoint
logs the steps before it once more, so what an attempt leaves is the whole curve.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egt_pipeline.context import Context
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.errors import EgtError, TaskError, UnavailableError
from egt_pipeline.contract.tracking import Tracking

TRACKING_FOLDER = "tracking"  # within the artifacts of sft and rl
Log = Callable[[int, Mapping[str, float]], None]
_Service = tuple[Log, Callable[[], object]]  # log, and end


@contextmanager
def tracked(context: Context, recipe: Recipe, out: Path) -> Iterator[Log]:
    """A function that takes the figures of a step, until the end of the block.

    Raises TaskError when a service is named whose package or key is missing, UnavailableError when it cannot be
    reached at the start. Later failures of the service are printed: a training does not end for a curve.
    """
    from tensorboard.summary import Writer

    folder = out / TRACKING_FOLDER
    folder.mkdir()
    log_to_service, end = _service(context, recipe, folder)
    writer = Writer(str(folder))

    def log(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()
        _say_failures(log_to_service, step, figures)

    try:
        yield log
    finally:
        writer.close()
        _say_failures(end)
        for link in (path for path in folder.rglob("*") if path.is_symlink()):
            link.unlink()  # an artifact holds files, and W&B links to its newest


def _say_failures(act: Callable[..., object], *arguments: Any) -> None:
    try:
        act(*arguments)
    except Exception as error:
        print(f"tracking: {type(error).__name__}: {error}", flush=True)


def _service(context: Context, recipe: Recipe, folder: Path) -> _Service:
    tracking = context.tracking
    if tracking is None:
        return (lambda _step, _figures: None), (lambda: None)
    try:
        start = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}[tracking.service]
        return start(tracking, context, recipe.model_dump(mode="json"), folder)
    except EgtError:
        raise
    except ImportError as error:
        raise TaskError(
            f"tracking.service: {tracking.service!r} needs the package {error.name}, which is not installed where the "
            f"stage runs; install egt[tracking], or leave tracking out"
        ) from error
    except Exception as error:
        where = tracking.address or tracking.service
        raise UnavailableError(f"tracking: {where} cannot be used: {type(error).__name__}: {error}") from error


def _wandb(tracking: Tracking, context: Context, config: dict[str, Any], folder: Path) -> _Service:
    import wandb

    if not tracking.offline and not wandb.api.api_key:
        raise TaskError(
            f"tracking: {tracking.key_variable} is not set, which W&B needs unless offline: true "
            f"(on a cluster: apiKeySecret names the Secret that holds it)"
        )
    run = wandb.init(
        project=tracking.project,
        name=context.name,
        config=config,
        dir=folder if tracking.offline else context.scratch,
        mode="offline" if tracking.offline else "online",
        settings=wandb.Settings(
            silent=True, console="off", **({"base_url": tracking.address} if tracking.address else {})
        ),
    )
    return (lambda step, figures: run.log(dict(figures), step=step)), run.finish


def _mlflow(tracking: Tracking, context: Context, config: dict[str, Any], folder: Path) -> _Service:
    if tracking.offline:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # a database needs more packages than figures do
    import mlflow

    mlflow.set_tracking_uri(tracking.address or f"file://{folder}/mlruns")
    mlflow.set_experiment(tracking.project)
    mlflow.start_run(run_name=context.name)
    mlflow.log_params(config)
    return (lambda step, figures: mlflow.log_metrics(dict(figures), step=step)), mlflow.end_run


def _trackio(tracking: Tracking, context: Context, config: dict[str, Any], folder: Path) -> _Service:
    os.environ["TRACKIO_DIR"] = str(folder if tracking.offline else context.scratch)  # read when it is imported
    import trackio

    trackio.init(project=tracking.project, name=context.name, space_id=tracking.address, config=config, embed=False)
    return (lambda step, figures: trackio.log(dict(figures), step=step)), trackio.finish

"""The task file of an attempt in the cluster. Pure."""

from collections.abc import Mapping
from typing import Any

from egt_operator.api import EGTRun
from egt_operator.api_status import StageStatus
from egt_operator.render import CA_FOLDER, SCRATCH, SUMMARY, gpus_of, pods_of
from egt_operator.settings import Settings
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.chain import Link
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.task import StoreRef, TaskFile


def task_of(run: EGTRun, stage: StageStatus, links: Mapping[StageName, Link], settings: Settings) -> TaskFile:
    """What the attempt that ``stage`` describes is handed; paths are those of its pod."""
    link, store = links[stage.name], run.spec.store
    prepare = stage.name is StageName.PREPARE
    return TaskFile(
        run=run.metadata.name,
        stage=stage.name,
        digest=stage.digest,
        revision=STAGE_TYPES[stage.name].revision,
        recipe=_dump(link.recipe),
        inputs=dict(link.inputs or {}),
        store=StoreRef(
            uri=store.uri,
            endpoint=store.endpoint,
            region=store.region,
            ca_file=f"{CA_FOLDER}/ca.crt" if store.ca_secret else None,
        ),
        attempt=stage.attempt,
        workers=pods_of(run, stage.name),
        processes=getattr(run.spec.stage(stage.name), "processes", 1),
        gpus=gpus_of(run, stage.name),
        grace_seconds=settings.grace_seconds,
        tracking=run.spec.tracking,
        run_recipes={name: _dump(recipe) for name, recipe in run.recipes.items()} if prepare else {},
        scratch=f"{SCRATCH}/work",
        summary_path=SUMMARY,
    )


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True)

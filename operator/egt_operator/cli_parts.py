"""What the commands of ``egt`` have in common: their options, how a run is opened, and their exit codes."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from egt_operator.api import EGTRun
from egt_operator.api_parts import StoreSpec
from egt_operator.estimate import Estimate
from egt_operator.fit import too_few_rows
from egt_operator.local import LocalRun, state_folder
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.fingerprint import local_sources, missing_sources
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import StoreRef

CHANGES_EXIT = 2  # as of terraform's plan -detailed-exitcode: something would run
PROBLEMS_EXIT = 1

StoreOption = Annotated[str | None, typer.Option("--store", help="Use this store instead of spec.store.uri.")]
OutputOption = Annotated[str, typer.Option("--output", "-o", help="text, or json for programs.", metavar="text|json")]


def is_json(output: str) -> bool:
    """True when programs are to read the output. Raises BadParameter at what is neither text nor json."""
    if output not in ("text", "json"):
        raise typer.BadParameter(f"{output!r} is neither text nor json", param_hint="--output")
    return output == "json"


def open_local(run: EGTRun, store: str | None) -> LocalRun:
    """A run on this machine, in its own store or in ``store``."""
    from egt_pipeline.remote_sources import source_fingerprint
    from egt_pipeline.store import open_store

    ref = store_ref(run, store)
    opened = open_store(ref)
    state = state_folder(ref, run.metadata.name)
    return LocalRun(run, ref, state, opened.manifest, lambda recipe: source_fingerprint(recipe, ref))


def store_ref(run: EGTRun, override: str | None) -> StoreRef:
    """The store of a run as stages see it; a plain path becomes an absolute file:// URI."""
    spec = run.spec.store
    try:
        uri = StoreSpec(uri=override).uri if override else spec.uri
    except ValidationError as error:
        raise TaskError(f"--store: {str(error.errors()[0]['ctx']['error']).removeprefix('uri: ')}") from None
    if "://" not in uri:
        uri = f"file://{Path(uri).resolve()}"
    return StoreRef(uri=uri, endpoint=spec.endpoint, region=spec.region, ca_file=spec.ca_file)


def failures(run: EGTRun, needs: Estimate) -> list[str]:
    """What is known now to fail in a stage that would run, a line each: sources, the model's files, rows to keep."""
    from egt_pipeline.model_check import check_files, check_model

    found: list[str] = []
    if StageName.PREPARE in needs.stages:
        recipe: PrepareRecipe = run.recipes[StageName.PREPARE]  # type: ignore[assignment]
        found += missing_sources(recipe)
        model = dict(local_sources(recipe)).get("model.source")
        if model is not None and Path(model).exists():
            try:
                check_model(Path(model), "spec.model.source")
                check_files(Path(model), "spec.model.source")
            except TaskError as error:
                found.append(str(error))
    words = [f"prepare will fail: {line}" for line in found]
    return words + [f"curate will fail: {line}" for line in too_few_rows(run.spec, needs)]

"""The ``egt`` command."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer._click.exceptions import UsageError  # typer hands on only a part of what it raises

from egt_operator.cli_parts import CHANGES_EXIT, PROBLEMS_EXIT, OutputOption, StoreOption, failures, is_json, open_local
from egt_operator.estimate import estimate, prepared_metrics
from egt_operator.fit import check_fits, refusals
from egt_operator.geometry import geometry_of
from egt_operator.local import LocalRun, StageOutcome, outcome, run_local
from egt_operator.local_view import LocalView
from egt_operator.manifest_file import load_run
from egt_operator.plan import Task, forecast, forecast_without_store
from egt_operator.plan_view import print_plan
from egt_operator.schema import generated_files
from egt_operator.sweep_cli import sweep_app
from egt_pipeline.cli import data_app, model_app
from egt_pipeline.contract.chain import Link
from egt_pipeline.contract.errors import ArtifactError, EgtError, StoppedError, TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest

typer_app = typer.Typer(
    name="egt",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Entropy-guided training of reasoning reward models. One manifest says a whole run: begin with `egt plan`.",
)
local_app = typer.Typer(no_args_is_help=True, help="Run a manifest on this machine, without a cluster.")
typer_app.add_typer(local_app, name="local")
typer_app.add_typer(sweep_app, name="sweep")
typer_app.add_typer(data_app, name="data")
typer_app.add_typer(model_app, name="model")

ManifestFile = Annotated[Path, typer.Argument(metavar="FILE", help="An EGTRun manifest (YAML).", show_default=False)]


@local_app.command("run")
def local_run(file: ManifestFile, store: StoreOption = None, output: OutputOption = "text") -> None:
    """Run every stage that is not published yet, one after another. Ctrl-C stops; the same command goes on.

    With `-o json` the last line of standard output is one object: run, phase, stages.
    """
    wants_json = is_json(output)
    local = open_local(load_run(file), store)
    console = Console(stderr=wants_json)
    name = local.run.metadata.name
    error: EgtError | None = None
    with LocalView(console, name, list(local.recipes)) as view:
        try:
            run_local(local, view)
        except EgtError as caught:
            error = caught
    links, found = local.chain()
    made = {task.stage: manifest for task, manifest in found.items()}
    stages = [StageOutcome(link, *view.seen(link.stage), made.get(link.stage)) for link in links.values()]
    if wants_json:
        phase = "Complete" if error is None else "Stopped" if error.exit_code == 143 else "Failed"
        print(json.dumps(outcome(name, phase, stages, local.store)))
    if error is not None:
        raise error
    if not wants_json:
        hint = f"egt report {file}{f' --store {store}' if store else ''}"
        console.print(f"[green]complete[/]: `{hint}` shows what happened and why", highlight=False)


@typer_app.command("plan")
def show_plan(file: ManifestFile, store: StoreOption = None, output: OutputOption = "text") -> None:
    """Say per stage what a run would do now, why, and what it takes.

    Exit code 0: nothing would run; 2: something would; 64: the command, the manifest or its store
    cannot be read, a source or model is no good, or what would run does not fit its GPUs; 65: an
    artifact is damaged; 69: the store does not answer. What a run needs is said in any case.
    """
    wants_json, run = is_json(output), load_run(file)
    trouble: EgtError | None = None
    found: dict[Task, Manifest] = {}
    try:
        local = open_local(run, store)
        links, found = local.chain()
        lines = forecast(links, set(found), local.past())
    except EgtError as error:  # no store, no key, a damaged artifact: what the manifest alone says is still of use
        trouble, lines = error, forecast_without_store(run.recipes, str(error))
    to_run = {line.name for line in lines if line.action == "run"}
    needs = estimate(run, geometry_of(run.spec.model), prepared_metrics(found))
    needs = needs if trouble else needs.only(to_run)
    refused = refusals(run.spec, needs)
    print_plan(lines, needs, refused, as_json=wants_json)
    failing = failures(run, needs.only(to_run))
    for line in failing:
        print(line, file=sys.stderr)
    check_fits(refused)
    if trouble is not None:
        raise trouble
    if to_run:
        raise typer.Exit(TaskError.exit_code if failing else CHANGES_EXIT)


@typer_app.command("verify")
def verify(
    file: ManifestFile,
    store: StoreOption = None,
    output: OutputOption = "text",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take what does not fit out of the store; the next run makes it anew.")
    ] = False,
) -> None:
    """Recompute every checksum and digest of a run. Exit code 1 when something does not fit or is not published."""
    from egt_pipeline.store import open_store
    from egt_pipeline.verify import verify_chain

    wants_json = is_json(output)
    local = open_local(load_run(file), store)
    opened = open_store(local.store)
    results = list(verify_chain(_links(local), opened))
    if wants_json:
        print(json.dumps([vars(result) for result in results]))
    else:
        table = Table("stage", "digest", "files", "MiB", "verdict")
        for result in results:
            verdict = "[green]fits[/]" if not result.missing else "[yellow]fits, but an input is gone[/]"
            verdict = "[red]does not fit[/]" if result.problems else verdict
            verdict = verdict if result.published else "[yellow]not published[/]"
            size = f"{result.size_bytes / 2**20:.1f}"
            table.add_row(result.stage, result.digest or "", str(result.files), size, verdict)
        Console().print(table)
        for result in results:
            # Outside of the table: a path that is wrapped cannot be copied.
            for problem in (*result.problems, *result.missing) if result.published else ():
                print(f"{result.stage}: {problem}")
    for result in results:
        if withdraw and result.digest and result.published and result.problems:
            opened.withdraw(result.stage, result.digest)
            print(f"{result.stage}: withdrawn", file=sys.stderr)
    if any(result.problems or result.missing for result in results):
        raise typer.Exit(PROBLEMS_EXIT)


@typer_app.command("report")
def report(
    file: ManifestFile,
    store: StoreOption = None,
    truth: Annotated[Path | None, typer.Option(help="Known noise (truth.parquet), if there is any.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; default: RUN.html beside FILE's store.")
    ] = None,
) -> None:
    """Write the run as one self-contained HTML page: what ran, why samples were kept, what came of it."""
    from egt_pipeline.report import build_report
    from egt_pipeline.store import open_store

    local = open_local(load_run(file), store)
    _, found = local.chain()
    if not found:
        raise TaskError(f"{file}: nothing of this run is published yet; start it with `egt local run {file}`")
    if truth is not None and not truth.is_file():
        raise TaskError(f"--truth: {truth} does not exist, or is no file")
    opened = open_store(local.store)
    manifests = {task.stage: manifest for task, manifest in found.items()}
    folders = {stage: opened.fetch(manifest, local.state / "cache") for stage, manifest in manifests.items()}
    page = build_report(manifests, folders, truth, local.run.metadata.name)
    target = out or local.state.parent.parent / f"{local.run.metadata.name}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page)
    print(target)


@typer_app.command("generate")
def generate(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if a file is not current.")] = False,
    root: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
) -> None:
    """Write what is generated from the types: the CRD, the field reference, the schema for editors."""
    stale = [
        path
        for path, text in generated_files().items()
        if not (root / path).exists() or (root / path).read_text() != text
    ]
    if check:
        for path in stale:
            print(f"{path}: not current; run `egt generate`", file=sys.stderr)
        raise typer.Exit(PROBLEMS_EXIT if stale else 0)
    for path in stale:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(generated_files()[path])
        print(f"wrote {path}")


def _links(local: LocalRun) -> dict[StageName, Link]:
    """The links of a run; without prepare's when its manifest is what is damaged."""
    try:
        return local.links()
    except ArtifactError:
        return replace(local, lookup=lambda _stage, _digest: None).links()


def app() -> Any:
    """The entry point: errors meant for people go to standard error, with the exit code of their kind."""
    UsageError.exit_code = TaskError.exit_code  # its own, 2, is what `egt plan` ends with when something would run
    try:
        return typer_app()
    except EgtError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        message, code = f"{error.filename}: {error.strerror}", TaskError.exit_code
    except KeyboardInterrupt:
        message, code = "stopped; the same command goes on from what is published", StoppedError.exit_code
    if code == ArtifactError.exit_code:
        message += "\n`egt verify FILE --withdraw` takes what is damaged out of the store; the next run makes it anew"
    Console(stderr=True).print(f"[red]error[/]: {escape(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)

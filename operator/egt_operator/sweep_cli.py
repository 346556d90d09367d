"""``egt sweep``: many runs that differ in named fields, from one file."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from egt_operator.api import EGTRun
from egt_operator.cli_parts import CHANGES_EXIT, PROBLEMS_EXIT, OutputOption, StoreOption, is_json
from egt_operator.sweep import SWEEP_LABEL, SweepRun, tasks_of, waves
from egt_operator.sweep_local import open_members, read_sweep, run_members
from egt_operator.sweep_outcome import outcome_of
from egt_operator.sweep_plan import as_data, failures_of, look, print_sweep, too_large
from egt_pipeline.contract.chain import chain
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.fingerprint import local_sources
from egt_pipeline.contract.graph import StageName

if TYPE_CHECKING:
    from egt_pipeline.sweep_results import Comparison

sweep_app = typer.Typer(
    no_args_is_help=True,
    help="Many runs that differ in named fields, from one file; what they share runs once. Begin with `plan`.",
)
SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="An EGTSweep (YAML).", show_default=False)]


@sweep_app.command("plan")
def plan(file: SweepFile, store: StoreOption = None, output: OutputOption = "text") -> None:
    """Say which stages would run now, shared ones once, and their GPU-hours.

    Exit code 0: nothing would run; 2: something would; 64: the command, the sweep, its base or its
    store cannot be read, a source or model is no good, or what would run does not fit its GPUs; 65: an
    artifact is damaged; 69: the store does not answer: then it is said what would run if nothing
    were published.
    """
    wants_json = is_json(output)
    _, runs = read_sweep(file)
    seen = look(runs, store)
    if wants_json:
        print(json.dumps(as_data(seen)))
    else:
        print_sweep(seen)
    failing = failures_of(seen)
    for line in failing:
        print(line, file=sys.stderr)
    if refused := too_large(seen):
        raise TaskError(refused)
    if seen.trouble is not None:
        raise seen.trouble
    if any(count.to_run for count in seen.counts):
        raise typer.Exit(TaskError.exit_code if failing else CHANGES_EXIT)


@sweep_app.command("run")
def run(file: SweepFile, store: StoreOption = None, output: OutputOption = "text") -> None:
    """Run the runs one after another. A failing one does not stop the others; the same command goes on from there.

    With `-o json` the last line of standard output is one object: sweep, runs. Exit code 1 when a run is not complete.
    """
    wants_json = is_json(output)
    sweep, runs = read_sweep(file)
    console = Console(stderr=wants_json)
    ended = run_members(open_members(runs, store), console)
    if wants_json:
        lines = [{"run": one.entry.name, "arm": one.entry.arm, "seed": one.entry.seed, "phase": one.phase,
                  "message": one.message} for one in ended]  # fmt: skip
        print(json.dumps({"sweep": sweep.metadata.name, "runs": lines}))
    incomplete = [one.entry.name for one in ended if one.phase != "Complete"]
    if incomplete:
        words = f"{len(incomplete)} of {len(ended)} runs are not complete: {', '.join(incomplete)}"
        console.print(f"{words}; the same command tries them again", highlight=False, soft_wrap=True)
        raise typer.Exit(PROBLEMS_EXIT)
    hint = f"egt sweep table {file}{f' --store {store}' if store else ''}"
    console.print(f"[green]all {len(ended)} runs are complete[/]: `{hint}` compares them", highlight=False)


@sweep_app.command("table")
def table(
    file: SweepFile,
    store: StoreOption = None,
    output: OutputOption = "text",
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; default: SWEEP.html in the working directory.")
    ] = None,
) -> None:
    """Compare what is evaluated so far: tables with 95 % intervals, and one self-contained HTML page with plots."""
    from egt_pipeline.sweep_page import build_page

    wants_json = is_json(output)
    sweep, runs = read_sweep(file)
    found = outcome_of(sweep, open_members(runs, store), file)
    if not found.scored:
        raise TaskError(f"{file}: no run of this sweep is evaluated yet; start it with `egt sweep run {file}`")
    target = out or Path(f"{sweep.metadata.name}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(build_page(found))
    if wants_json:
        print(json.dumps(asdict(found)))
        return
    for comparison in found.comparisons:
        _print_comparison(comparison)
    print(f"{len(found.scored)} of {found.runs} runs are evaluated; page: {target}")


def _print_comparison(comparison: "Comparison") -> None:
    """The first column; all of them would be too wide for a terminal, and stand in the page."""
    column = comparison.columns[0]
    title = escape(f"{comparison.name}: {comparison.title}".removesuffix(": "))
    shown = Table(title=title, title_justify="left", min_width=len(title))
    names = [comparison.x or "row", "runs", f"{column} (%)", "95 % interval"]
    names += ["reference"] if comparison.has_reference(column) else []
    for name in names:
        shown.add_column(escape(name))
    for row in comparison.rows:
        found, elsewhere = row.found.get(column), row.reference.get(column)
        mean = "" if found is None else f"{100 * found.mean:.2f}"
        interval = "" if found is None else f"{100 * found.low:.2f} to {100 * found.high:.2f}"
        reference = "" if elsewhere is None else f"{100 * elsewhere:.2f}"
        shown.add_row(*[escape(row.name), str(row.runs), mean, interval, reference][: len(names)])
    Console().print(shown)


@sweep_app.command("manifests")
def manifests(
    file: SweepFile,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet, or is empty.", show_default=False)],
) -> None:
    """Write each run as a plain EGTRun, for `kubectl apply`, in numbered folders to apply one after another.

    Runs in one folder share nothing that is costly and not made by an earlier folder: at once, each would do it again.
    """
    sweep, runs = read_sweep(file)
    if out.exists() and any(out.iterdir()):
        raise TaskError(f"--out: {out} is not empty; runs of an earlier sweep would be applied too")
    _check_stores(file, runs)
    # Neither store nor sources are asked: both may be out of reach from where manifests are written.
    order = waves([tasks_of(chain(entry.run.recipes, source_fingerprint="", prepared=None)) for entry in runs])
    for number, wave in enumerate(order, 1):
        folder = out / f"{number}"
        folder.mkdir(parents=True)
        for place in wave:
            document = runs[place].run.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            (folder / f"{runs[place].name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        label = f"{SWEEP_LABEL}={sweep.metadata.name}"
        print(f"kubectl apply -f {folder} && kubectl wait egt -l {label} --for=condition=Finished --timeout=48h")
    for place_here in sorted({place for entry in runs for place in _on_this_machine(entry.run)}):
        print(f"note: {place_here} is on this machine; pods find it only if their image has it", file=sys.stderr)


def _check_stores(file: Path, runs: Sequence[SweepRun]) -> None:
    here = next((entry for entry in runs if not entry.run.spec.store.uri.startswith("s3://")), None)
    if here is not None:
        raise TaskError(
            f"{file}: {here.name}: store.uri: {here.run.spec.store.uri!r} is on this machine; a cluster takes "
            "s3://bucket/prefix, which may stand under common: store.uri"
        )


def _on_this_machine(run: EGTRun) -> Iterator[str]:
    """Sources and services of a run that are on the machine where its manifest was written."""
    for field, path in local_sources(run.recipes[StageName.PREPARE]):  # type: ignore[arg-type]
        yield f"{field}: {path}"
    services = {"distill.teacher": run.spec.distill.teacher, "rl.judge.endpoint": run.spec.rl.judge.endpoint}
    for name, service in services.items():
        if service is not None and urlsplit(service.base_url).hostname in ("127.0.0.1", "localhost", "::1"):
            yield f"{name}.baseUrl: {service.base_url}"

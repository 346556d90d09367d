"""Every row read once: checked, given a status and a reason, written out in one normal form with a content digest."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egt_pipeline.context import BROUGHT, Context, StageResult
from egt_pipeline.contract.data import DataSource, ModelSource
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import DIGEST_LENGTH, Metric, Progress, content_digest
from egt_pipeline.model_check import CHECKED_FILES, check_files, check_model
from egt_pipeline.normal_form import Normaliser
from egt_pipeline.preferences import STATUS_OK, write_images, write_preferences
from egt_pipeline.reward_model import MODEL_FILE, MODEL_FOLDER, files_from_hub
from egt_pipeline.sources import local_path, model_files, rows_of

_IMAGE_FILE_BYTES = 256 * 2**20  # pictures of one file: large enough for S3, small enough to load
_PROGRESS_ROWS = 100
_NAMED_ROWS = 3  # how many bad rows of each reason an error shows


def run(recipe: PrepareRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Writes ``sft/``, ``rl/``, ``evaluate/<name>/`` and ``model.json``; content digests of each."""
    assert not inputs, "prepare is the first stage"
    content = {"model": _model(recipe.model, out, context)}
    metrics: dict[str, Metric] = {}
    folders = {"sft": ("data.sft", recipe.data.sft), "rl": ("data.rl", recipe.data.rl)}
    for number, source in enumerate(recipe.data.evaluate):
        folders[f"evaluate/{source.name}"] = (f"data.evaluate[{number}]", source)
    digests: dict[str, str] = {}
    for folder, (field, source) in folders.items():
        with _named(field):
            rows = _prepare(recipe, source, folder, out / folder, context)
        context.check_stopped()
        _check(rows, field, recipe.max_bad_share)
        counts = Counter(row["status"] for row in rows)
        metrics |= {f"{folder}.rows": len(rows)} | {f"{folder}.{status}": n for status, n in counts.items()}
        metrics[f"{folder}.answers_exchanged"] = sum(row["answer_order"] == "21" for row in rows)
        digests[folder] = _digest(rows, without=())
        if folder == "rl":
            content["rl-unlabelled"] = _digest(rows, without=("label", "strength", "response"))
    content |= {"sft": digests["sft"], "rl": digests["rl"]}
    content["evaluate"] = content_digest({name: digests[name] for name in digests if name.startswith("evaluate/")})
    total = sum(int(n or 0) for name, n in metrics.items() if name.endswith(".rows"))
    bad = total - sum(int(n or 0) for name, n in metrics.items() if name.endswith(".ok"))
    return StageResult({"rows": total, "bad_rows": bad, **metrics}, content)


def _model(source: ModelSource, out: Path, context: Context) -> str:
    """Write ``model.json``; the identity of the model: its files, or the commit it is pinned to.

    A model that was brought here is kept in the artifact: the stages that load it run elsewhere.
    """
    record: dict[str, Any] = {"source": source.source, "revision": source.revision, "files": [], "kept": False}
    identity: Any = [source.source, source.revision]
    if source.source.startswith("hf://"):
        check_model(files_from_hub(source, CHECKED_FILES), "spec.model.source")
    else:
        folder = local_path(source.source)
        check_model(folder, "spec.model.source")
        check_files(folder, "spec.model.source")
        identity = record["files"] = model_files(source)
    if Path(source.source).is_relative_to(context.scratch / BROUGHT):
        shutil.move(source.source, out / MODEL_FOLDER)
        record |= {"source": MODEL_FOLDER, "kept": True}
    (out / MODEL_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return content_digest(identity)


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Whoever reads a source knows its own fields; here they get the place that the source has in the recipe."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{field}.{error}") from None


def _prepare(recipe: PrepareRecipe, source: DataSource, name: str, out: Path, context: Context) -> list[dict[str, Any]]:
    """Write one source in normal form; its rows."""
    out.mkdir(parents=True)
    needs_response = name == "sft" and recipe.need_responses
    normaliser = Normaliser(source, recipe.max_image_pixels, needs_response=needs_response)
    rows: list[dict[str, Any]] = []

    def pictures() -> Iterator[tuple[str, bytes]]:
        for number, raw in enumerate(rows_of(source)):
            row, found = normaliser.row(number, raw)
            rows.append(row)
            yield from found
            if number % _PROGRESS_ROWS == 0:
                context.progress(Progress(done=number + 1, total=number + 1, unit=f"rows of {name}"))
                context.check_stopped()

    write_images(out, pictures(), file_bytes=_IMAGE_FILE_BYTES)
    if source.answer_order == "balanced":
        exchange_half(rows, recipe.seed)
    write_preferences(out, rows)
    return rows


def exchange_half(rows: list[dict[str, Any]], seed: int) -> None:
    """Show half of the usable rows with their answers exchanged, in place.

    Who is exchanged follows from the seed and the sample ids alone: neither labels nor the order of rows matter.
    """

    def key(row: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}|{row['sample_id']}".encode()).digest()

    # A trajectory speaks of a first and a second answer, so a row that brings one stays as it is.
    usable = sorted((row for row in rows if row["status"] == STATUS_OK and row["response"] is None), key=key)
    for row in usable[: len(usable) // 2]:
        row["answer_1"], row["answer_2"] = row["answer_2"], row["answer_1"]
        row["label"], row["answer_order"] = 3 - row["label"], "21"


def _check(rows: list[dict[str, Any]], field: str, max_bad_share: float) -> None:
    """Raises TaskError when too many rows are bad, or none is left."""
    bad = [row for row in rows if row["status"] != STATUS_OK]
    if not rows:
        raise TaskError(f"{field}: the source has no rows")
    if len(bad) < len(rows) and len(bad) <= max_bad_share * len(rows):
        return
    lines = []
    for status, count in Counter(row["status"] for row in bad).most_common():
        shown = [row for row in bad if row["status"] == status][:_NAMED_ROWS]
        examples = "; ".join(f"row {row['row']} ({row['sample_id']}): {row['reason']}" for row in shown)
        lines.append(f"  {count} {status}: {examples}")
    share = f"{len(bad)} of {len(rows)} rows are bad, more than maxBadShare {max_bad_share}"
    raise TaskError(f"{field}: {share}\n" + "\n".join(lines))


def _digest(rows: list[dict[str, Any]], *, without: tuple[str, ...]) -> str:
    """The digest of rows in normal form; columns ``without`` do not count."""
    total = hashlib.sha256()
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in without}
        total.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode())
    return total.hexdigest()[:DIGEST_LENGTH]

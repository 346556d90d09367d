"""A teacher explains each preference without seeing its label; the first response whose answer is right is kept.

EGT section 2.2: up to three attempts, failures discarded. The number of attempts is recorded: it is the paper's signal
of difficulty. Errors of the network are no attempts. Rows are committed in chunks, so a stopped run asks nothing twice.
"""

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.chat import Chat, Reply, ServiceDownError, seed_of
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.contract.recipes import DistillRecipe
from egt_pipeline.contract.task import Metric, Progress
from egt_pipeline.preferences import PREFERENCES_FILE, STATUS_OK, Images, Preference, read_preferences
from egt_pipeline.prompts import is_well_formed, normalise_response, parse_verdict, render

TRAJECTORIES_FILE = "trajectories.parquet"
TRAJECTORIES = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("attempts", pa.int32()),
        ("response", pa.string()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
_CHUNK_ROWS = 128  # rows that a stopped run may have to ask again
# How the pictures that prepare lets through begin.
_KINDS = {b"\xff\xd8": "jpeg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}
Row = dict[str, object]


def run(recipe: DistillRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Writes ``trajectories.parquet``: every row of data.sft, with status kept, exhausted, unavailable or skipped."""
    folder = inputs["data"] / "sft"
    rows = read_preferences(folder, labelled=True)
    images = Images(folder)
    chunks = [rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS)]
    failed: list[Row] = []
    with asyncio.Runner() as loop, Chat(recipe.teacher, loop) as chat:
        for number, chunk in enumerate(chunks):
            name = f"chunks/part-{number:06d}.parquet"
            if context.work.has(name):
                failed += _unavailable(context, name)
            else:
                teach = partial(_distill_row, recipe, chat, images)
                told = _Told(context, number * _CHUNK_ROWS, len(rows))
                done = loop.run(_distill_chunk(teach, chunk, told, at_once=recipe.teacher.concurrency))
                part = context.scratch / f"part-{number:06d}.parquet"
                pq.write_table(pa.Table.from_pylist(done, schema=TRAJECTORIES), part)
                failed += [row for row in done if row["status"] == "unavailable"]
                _give_up_above(recipe.max_failed_share, failed, len(rows))
                context.work.commit(name, part)
            context.check_stopped()
    table = _assemble(folder, context, len(chunks))
    pq.write_table(table, out / TRAJECTORIES_FILE)
    return StageResult(_metrics(table, recipe))


class _Told:
    """Counts finished rows and says how many of them are kept."""

    def __init__(self, context: Context, before: int, total: int) -> None:
        self._context, self._before, self._total = context, before, total
        self._finished = self._kept = 0

    def finished(self, row: Row) -> None:
        self._finished += 1
        self._kept += row["status"] == "kept"
        share = self._kept / self._finished
        done = self._before + self._finished
        self._context.progress(
            Progress(done=done, total=self._total, unit="rows", metric_name="kept", metric_value=share)
        )


async def _distill_chunk(
    teach: Callable[[Preference], Awaitable[Row]], rows: Sequence[Preference], told: _Told, *, at_once: int
) -> list[Row]:
    slots = asyncio.Semaphore(at_once)  # no more rows than that have their pictures in memory

    async def one(row: Preference) -> Row:
        async with slots:
            result = await teach(row)
        told.finished(result)
        return result

    return list(await asyncio.gather(*(one(row) for row in rows)))


async def _distill_row(recipe: DistillRecipe, chat: Chat, images: Images, row: Preference) -> Row:
    content = [_image_part(images[image_id]) for image_id in row.images]
    content.append({"type": "text", "text": render(recipe.prompt, row.question, row.answer_1, row.answer_2)})
    tokens_in = tokens_out = 0
    reason = ""

    def result(attempts: int, status: str, why: str, response: str | None = None) -> Row:
        place = {"row": row.row, "sample_id": row.sample_id, "attempts": attempts, "response": response}
        return {**place, "tokens_in": tokens_in, "tokens_out": tokens_out, "status": status, "reason": why}

    for attempt in range(1, recipe.attempts + 1):
        temperature = recipe.temperatures[min(attempt, len(recipe.temperatures)) - 1]
        try:
            reply = await chat.ask(
                [{"role": "user", "content": content}],
                temperature=temperature,
                max_tokens=recipe.max_tokens,
                seed=seed_of(row.sample_id, attempt),
            )
        except ServiceDownError:
            raise  # the rest of the rows would be lost; the open chunk is asked again by the next attempt
        except UnavailableError as error:
            return result(attempt - 1, "unavailable", str(error))
        tokens_in, tokens_out = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out
        response = normalise_response(reply.text)
        reason = _why_not(reply, response, row.label)
        if not reason:
            return result(attempt, "kept", "", response)
    return result(recipe.attempts, "exhausted", f"last attempt: {reason}")


def _why_not(reply: Reply, response: str, label: int | None) -> str:
    verdict = parse_verdict(response, truncated=reply.truncated)
    if verdict.status != "ok":
        return verdict.reason
    if not is_well_formed(response):
        return "not of the form <think>..</think><answer>..</answer>"
    return "" if verdict.answer == label else "the answer differs from the label"


def _image_part(data: bytes) -> dict[str, object]:
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), "png")
    address = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


def _give_up_above(max_failed_share: float, failed: Sequence[Row], total: int) -> None:
    """Raises UnavailableError when too many rows of all got no answer; the open chunk is then asked again later."""
    if len(failed) > max_failed_share * total:
        raise UnavailableError(
            f"the teacher did not answer for {len(failed)} of {total} rows, more than maxFailedShare "
            f"{max_failed_share}; the last reason: {failed[-1]['reason']}"
        )


def _unavailable(context: Context, name: str) -> list[Row]:
    """The rows of a committed chunk that the service never answered."""
    part = context.scratch / "committed.parquet"
    context.fetch_committed(name, part)
    return [row for row in pq.read_table(part).to_pylist() if row["status"] == "unavailable"]


def _assemble(folder: Path, context: Context, chunks: int) -> pa.Table:
    """All chunks in the order of the source, and the rows that prepare found bad as skipped."""
    rows: list[Row] = []
    for number in range(chunks):
        part = context.scratch / f"done-{number:06d}.parquet"
        context.fetch_committed(f"chunks/part-{number:06d}.parquet", part)
        rows += pq.read_table(part).to_pylist()
    columns = ["row", "sample_id", "status", "reason"]
    for row in pq.read_table(folder / PREFERENCES_FILE, columns=columns).to_pylist():
        if row["status"] != STATUS_OK:
            reason = f"{row['status']}: {row['reason']}"
            rows.append({**row, "attempts": 0, "tokens_in": 0, "tokens_out": 0, "status": "skipped", "reason": reason})
    rows.sort(key=lambda row: int(str(row["row"])))
    return pa.Table.from_pylist(rows, schema=TRAJECTORIES)


def _metrics(table: pa.Table, recipe: DistillRecipe) -> dict[str, Metric]:
    """Raises TaskError when nothing was kept."""
    rows = table.to_pylist()
    statuses = Counter(row["status"] for row in rows)
    if not statuses["kept"]:
        raise TaskError(f"distill: kept none of {len(rows)} rows: {dict(statuses)}; look at what the teacher answers")
    attempts = Counter(row["attempts"] for row in rows if row["status"] == "kept")
    return {
        "rows": len(rows),
        "kept_share": statuses["kept"] / len(rows),
        **dict(sorted(statuses.items())),
        **{f"kept_at_attempt_{attempt}": attempts[attempt] for attempt in range(1, recipe.attempts + 1)},
        "tokens_in": sum(row["tokens_in"] for row in rows),
        "tokens_out": sum(row["tokens_out"] for row in rows),
    }

"""Preferences in their normal form: what prepare writes and every later stage reads.

One row of ``preferences.parquet``::

    row 17 · sample_id "pool-00017" · images ["9f2c.. (sha256 of the bytes)"] · question "Which digit is this?"
    answer_1 "four" · answer_2 "7" · label 1 · source "default" · strength null · answer_order "12"
    subset "clear" · group "word" · response null · status "ok" · reason ""

``answer_1``, ``answer_2`` and ``label`` are as they are *shown*; ``answer_order`` is "12" when that is how they came,
"21" when prepare exchanged them. The pictures lie beside the table in ``images-00000.parquet``, ... (image_id, bytes).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PREFERENCES_FILE = "preferences.parquet"
STATUS_OK = "ok"
PREFERENCES = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("images", pa.list_(pa.string())),
        ("question", pa.string()),
        ("answer_1", pa.string()),
        ("answer_2", pa.string()),
        ("label", pa.int8()),
        ("source", pa.string()),
        ("strength", pa.float64()),
        ("answer_order", pa.string()),
        ("subset", pa.string()),
        ("group", pa.string()),
        ("response", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
IMAGES = pa.schema([("image_id", pa.string()), ("bytes", pa.binary())])
_UNLABELLED = [name for name in PREFERENCES.names if name not in ("label", "strength", "response")]


@dataclass(frozen=True)
class Preference:
    """One usable row. ``label`` is None where the stage is not given labels."""

    row: int
    sample_id: str
    images: tuple[str, ...]
    question: str
    answer_1: str
    answer_2: str
    label: int | None
    answer_order: str
    subset: str | None = None
    group: str | None = None
    response: str | None = None


def read_preferences(folder: Path, *, labelled: bool) -> list[Preference]:
    """The rows with status ok of ``folder/preferences.parquet``, in the order of the source.

    With ``labelled=False`` the label column is not even read: probe and curate cannot depend on it.
    """
    columns = PREFERENCES.names if labelled else _UNLABELLED
    table = pq.read_table(folder / PREFERENCES_FILE, columns=columns)
    rows = (row for row in table.to_pylist() if row["status"] == STATUS_OK)
    return [_preference(row) for row in rows]


def _preference(row: dict[str, object]) -> Preference:
    values = {name: row.get(name) for name in Preference.__dataclass_fields__}
    values["images"] = tuple(row["images"])  # type: ignore[arg-type]
    return Preference(**values)  # type: ignore[arg-type]


class Images:
    """The pictures of a folder by image id; memory-mapped, so only those that are read take memory."""

    def __init__(self, folder: Path) -> None:
        self._place: dict[str, tuple[int, int]] = {}
        self._columns: list[pa.ChunkedArray] = []
        for number, path in enumerate(sorted(folder.glob("images-*.parquet"))):
            table = pq.read_table(path, schema=IMAGES, memory_map=True)
            self._columns.append(table["bytes"])
            for place, image_id in enumerate(table["image_id"].to_pylist()):
                self._place[image_id] = (number, place)

    def __getitem__(self, image_id: str) -> bytes:
        number, place = self._place[image_id]
        value: bytes = self._columns[number][place].as_py()
        return value

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._place


def write_preferences(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write ``rows`` (every row that came in, usable or not) as ``folder/preferences.parquet``."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PREFERENCES), folder / PREFERENCES_FILE)


def write_images(folder: Path, images: Iterator[tuple[str, bytes]], *, file_bytes: int) -> None:
    """Write (image id, bytes) pairs into ``images-00000.parquet``, ... of about ``file_bytes`` each."""
    batch: list[tuple[str, bytes]] = []
    size = number = 0
    for pair in images:
        batch.append(pair)
        size += len(pair[1])
        if size >= file_bytes:
            _write_images(folder, number, batch)
            batch, size, number = [], 0, number + 1
    if batch or number == 0:
        _write_images(folder, number, batch)


def _write_images(folder: Path, number: int, batch: Sequence[tuple[str, bytes]]) -> None:
    columns = [[pair[0] for pair in batch], [pair[1] for pair in batch]]
    table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, IMAGES, strict=True)], schema=IMAGES)
    # Pictures are compressed already.
    pq.write_table(table, folder / f"images-{number:05d}.parquet", compression="none")

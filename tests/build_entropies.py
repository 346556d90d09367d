"""Entropy tables as the probe leaves them, from a few values."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENTROPIES = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("generation", pa.int32()),
        ("answer_entropy_nats", pa.float64()),
        ("sentence_entropy_nats", pa.float64()),
        ("predicted", pa.int8()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def generation(row: int, answer: float | None, sentence: float | None = 0.5, **other: Any) -> dict[str, Any]:
    """One row of the table; a prediction of 1 and status ok unless told otherwise."""
    found = {
        "row": row,
        "sample_id": f"s-{row:04d}",
        "generation": 0,
        "answer_entropy_nats": answer,
        "sentence_entropy_nats": sentence,
        "predicted": 1,
        "status": "ok",
        "reason": "",
    }
    return found | other


def write_entropies(folder: Path, rows: list[dict[str, Any]], *, rows_a_group: int = 1_000_000) -> Path:
    """The path of ``folder/entropies.parquet`` with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "entropies.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=ENTROPIES), path, row_group_size=rows_a_group)
    return path

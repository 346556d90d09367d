"""Where data and models come from: files beside each other, or a hub at a pinned commit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from egt_pipeline.contract.data import DataSource, ModelSource
from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.store import hash_file

_BATCH_ROWS = 1024  # rows with their pictures held in memory at once, when they lie inside a Parquet file
Row = dict[str, Any]


def source_format(source: DataSource) -> str:
    """jsonl, parquet or hub. Raises TaskError when it cannot be told from the name."""
    if source.format != "auto":
        return source.format
    if source.source.startswith("hf://"):
        return "hub"
    suffix = Path(source.source).suffix
    if suffix in (".jsonl", ".parquet"):
        return suffix.removeprefix(".")
    raise TaskError(f"source: {source.source!r} is neither .jsonl, .parquet nor hf://..; name its format")


def rows_of(source: DataSource) -> Iterator[Row]:
    """The rows of a source as they come, at most ``max_rows``.

    Raises TaskError, beginning with the field of the source, when it cannot be read.
    """
    kind = source_format(source)
    readers = {"jsonl": _jsonl_rows, "parquet": _parquet_rows, "hub": _hub_rows}
    for number, row in enumerate(readers[kind](source)):
        if source.max_rows is not None and number >= source.max_rows:
            return
        yield row


def local_path(place: str) -> Path:
    """A local path from a path or a file:// URI."""
    return Path(place.removeprefix("file://"))


def _existing(place: str) -> Path:
    path = local_path(place)
    if not path.is_file():
        raise TaskError(f"source: {place} does not exist, or is no file (relative paths start at {Path.cwd()})")
    return path


def _jsonl_rows(source: DataSource) -> Iterator[Row]:
    path = _existing(source.source)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = {"__error__": f"{path.name}:{number}: not JSON: {error}"}
            yield row if isinstance(row, dict) else {"__error__": f"{path.name}:{number}: not a JSON object"}


def _parquet_rows(source: DataSource) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(_existing(source.source))
    except (OSError, ValueError) as error:
        if not local_path(source.source).is_file():
            raise
        raise TaskError(f"source: {source.source} is no Parquet file: {error}") from None
    for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        yield from batch.to_pylist()


def _hub_rows(source: DataSource) -> Iterator[Row]:
    from datasets import Image, List, load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HFValidationError

    name = source.source.removeprefix("hf://")
    try:
        data = load_dataset(name, revision=source.revision, split=source.split, streaming=True, trust_remote_code=False)
    except (DatasetNotFoundError, HFValidationError) as error:
        raise TaskError(f"source: {source.source} at {source.revision}: {error}") from None
    except ConnectionError as error:
        raise UnavailableError(f"source: {source.source}: the hub does not answer: {error}") from None
    for column, feature in (data.features or {}).items():
        # Bytes as they are; they are decoded by us, with limits.
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            data = data.cast_column(column, List(Image(decode=False)))
    yield from data


def model_files(source: ModelSource) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of every file of a local model, sorted."""
    folder = local_path(source.source)
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            sha256, size = hash_file(path)
            files.append({"path": name, "size_bytes": size, "sha256": sha256})
    return files

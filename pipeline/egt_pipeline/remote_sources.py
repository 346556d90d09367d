"""Sources on S3: tables with the pictures around them, and models, on the server of the run's store.

They are brought beside the stage and then read like local ones. What tells them apart in time is what the server says
of its objects: key, size and ETag.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from egt_pipeline.contract.data import DataSource, ModelSource
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.fingerprint import PICTURES, fingerprint, sources
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import StoreRef, content_digest
from egt_pipeline.store import safe_path

_SCHEME = "s3://"
Object = tuple[str, int, str]  # key, size in bytes, ETag


def source_fingerprint(recipe: PrepareRecipe, ref: StoreRef) -> str:
    """As ``contract.fingerprint``, with the objects of sources on S3 in it."""
    remote = _remote(recipe)
    if not remote:
        return fingerprint(recipe)
    client = _client(ref)
    return content_digest(
        [fingerprint(recipe), [[place, sorted(_objects(client, place, field))] for field, place in remote.items()]]
    )


def bring(recipe: PrepareRecipe, ref: StoreRef, folder: Path) -> PrepareRecipe:
    """The recipe with local copies below ``folder`` for sources on S3. Raises TaskError at an empty one."""
    if not _remote(recipe):
        return recipe
    client = _client(ref)
    data = recipe.data.model_copy(
        update={
            "sft": _bring_table(client, recipe.data.sft, "data.sft", folder / "sft"),
            "rl": _bring_table(client, recipe.data.rl, "data.rl", folder / "rl"),
            "evaluate": tuple(
                _bring_table(client, one, f"data.evaluate[{number}]", folder / f"evaluate-{one.name}")
                for number, one in enumerate(recipe.data.evaluate)
            ),
        }
    )
    model = recipe.model
    if model.source.startswith(_SCHEME):
        _download(client, model.source, "model.source", folder / "model")
        model = ModelSource(source=str(folder / "model"))
    return recipe.model_copy(update={"data": data, "model": model})


def _remote(recipe: PrepareRecipe) -> dict[str, str]:
    return {field: place for field, place in sources(recipe).items() if place.startswith(_SCHEME)}


def _client(ref: StoreRef) -> Any:
    from egt_pipeline.s3_requests import connect

    return connect(ref)


def _bring_table(client: Any, source: DataSource, field: str, folder: Path) -> DataSource:
    if not source.source.startswith(_SCHEME):
        return source
    _download(client, source.source, f"{field}.source", folder)
    return source.model_copy(update={"source": str(folder / source.source.rpartition("/")[2])})


def _download(client: Any, place: str, field: str, folder: Path) -> None:
    from egt_pipeline.s3_requests import translated

    bucket, base = _place(place)
    for key, _, _ in _objects(client, place, field):
        target = folder / safe_path(key.removeprefix(base))
        target.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"{_SCHEME}{bucket}/{key}"):
            client.download_file(bucket, key, str(target))


def _objects(client: Any, place: str, field: str) -> Iterator[Object]:
    """The table and the pictures in its folder, or every file of a model. Raises TaskError when there is nothing."""
    from egt_pipeline.s3_requests import translated

    bucket, base = _place(place)
    whole = not _is_table(place)
    name = place.rpartition("/")[2]
    found = False
    with translated(place):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=base):
            for entry in page.get("Contents", ()):
                key: str = entry["Key"]
                if whole or key == base + name or key.lower().endswith(PICTURES):
                    found = found or whole or key == base + name
                    yield key, entry["Size"], entry["ETag"]
    if not found:
        raise TaskError(f"{field}: {place} does not exist, or holds nothing")


def _is_table(place: str) -> bool:
    return place.endswith((".jsonl", ".parquet"))


def _place(place: str) -> tuple[str, str]:
    """Bucket, and the prefix that ends with a slash: a model's own folder, or the one that a table lies in."""
    parts = urlsplit(place)
    key = parts.path.lstrip("/")
    return parts.netloc, (key.rpartition("/")[0] if _is_table(place) else key.rstrip("/")) + "/"

"""Did the sources of a run change? Sizes and times only, so that asking costs nothing.

A changed fingerprint makes prepare read the data again; if the content turns out the same, nothing else runs. Only the
tables, the model, and pictures around the tables count: logs and stores that lie beside them may change.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import content_digest

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def fingerprint(recipe: PrepareRecipe) -> str:
    """A digest of (path, size, modification time) of the model's files, the tables, and the pictures around them.

    Sources on a hub enter by name and revision, which their recipe holds already.
    """
    data = recipe.data
    tables = [Path(place) for place in _local(*(source.source for source in (data.sft, data.rl, *data.evaluate)))]
    marks = [[str(table), *_marks(table.parent, only=PICTURES), *_mark(table, table.parent)] for table in tables]
    models = [[place, *_marks(Path(place), only=None)] for place in _local(recipe.model.source)]
    return content_digest([*models, *marks])


def missing_sources(recipe: PrepareRecipe) -> Iterator[str]:
    """What prepare would report as missing: the field, and the place on this machine where nothing is."""
    for field, path in local_sources(recipe):
        if not Path(path).exists():
            hub = f"; on huggingface.co it is hf://{path}" if _could_be_of_the_hub(path) else ""
            yield f"spec.{field}: {path} does not exist (relative paths start at {Path.cwd()}){hub}"


def _could_be_of_the_hub(path: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", path)) and not path.endswith((".jsonl", ".parquet"))


def local_sources(recipe: PrepareRecipe) -> Iterator[tuple[str, str]]:
    """Field and path of each source that lies on this machine."""
    for field, place in sources(recipe).items():
        yield from ((field, path) for path in _local(place))


def sources(recipe: PrepareRecipe) -> dict[str, str]:
    """Where each source lies, by its field."""
    data = recipe.data
    named = {"model.source": recipe.model.source, "data.sft.source": data.sft.source, "data.rl.source": data.rl.source}
    return named | {f"data.evaluate[{number}].source": one.source for number, one in enumerate(data.evaluate)}


def _local(*places: str) -> list[str]:
    return [place.removeprefix("file://") for place in places if "://" not in place or place.startswith("file://")]


def _marks(folder: Path, only: tuple[str, ...] | None) -> Iterator[tuple[str, int, int]]:
    for root, directories, names in os.walk(folder):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(names):
            if only is None or name.lower().endswith(only):
                yield from _mark(Path(root, name), folder)


def _mark(path: Path, folder: Path) -> Iterator[tuple[str, int, int]]:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere, or a source that prepare will report as missing
        return
    yield path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns

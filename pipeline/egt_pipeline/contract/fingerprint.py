"""Did the sources of a run change? Sizes and times only, so that asking costs nothing.

A changed fingerprint makes prepare read the data again; if the content turns out the same, nothing else runs.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import content_digest


def fingerprint(recipe: PrepareRecipe) -> str:
    """A digest of (path, size, modification time) of all files of the model and around each data source.

    Sources that are not local files (s3://, hf://) enter by name and revision, which their recipe holds already.
    """
    places = [recipe.model.source]
    data = recipe.data
    places += [source.source for source in (data.sft, data.rl, *data.evaluate)]
    folders = {_folder(place) for place in places if "://" not in place or place.startswith("file://")}
    return content_digest([[str(folder), list(_files(folder))] for folder in sorted(folders)])


def _folder(place: str) -> Path:
    path = Path(place.removeprefix("file://"))
    return path if path.is_dir() else path.parent


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    for root, directories, names in os.walk(folder):
        directories.sort()
        for name in sorted(names):
            path = Path(root, name)
            found = path.stat()
            yield path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns

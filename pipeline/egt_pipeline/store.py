"""Where artifacts lie: file:// and s3://, with one behaviour.

::

    <store>/artifacts/<stage>/<digest>/manifest.json     written last, and once; the data files lie beside it
    <store>/attempts/<stage>/<digest>/...                work in progress: chunks, checkpoints, unpublished outputs

Readers start at a manifest, never list, and check size and SHA-256 of every file they read.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from egt_pipeline.context import Work
from egt_pipeline.contract.errors import ArtifactError, DiskFullError, TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import FileEntry, Manifest, StoreRef
from egt_pipeline.contract.words import in_words

MANIFEST = "manifest.json"
_FULL_BYTES = 2**20  # what is left of a full disk once the file that did not fit is closed
READ_BYTES = 4 * 2**20  # large enough that hashing, not the loop, takes the time


class Store(Protocol):
    """One tenant's artifacts."""

    def manifest(self, stage: StageName, digest: str) -> Manifest | None:
        """The manifest of an artifact, None if it is not published. Raises ArtifactError if it cannot be read."""

    def require(self, stage: StageName, digest: str) -> Manifest:
        """The manifest of an artifact. Raises ArtifactError if it is not published."""

    def workspace(self, stage: StageName, digest: str, attempt: int, scratch: Path) -> Path:
        """An empty directory whose files ``publish`` turns into the artifact."""

    def publish(self, directory: Path, manifest: Manifest) -> Manifest:
        """Publish ``directory`` under ``manifest`` (whose ``files`` are filled in here), all or nothing and once.

        Returns the manifest that is published: this one, or that of whoever was faster.
        """

    def fetch(self, manifest: Manifest, cache: Path) -> Path:
        """A local directory with the artifact's files, each verified. Raises ArtifactError naming what does not fit."""

    def work(self, stage: StageName, digest: str) -> Work:
        """The resumable work in progress of an artifact."""

    def discard_work(self, stage: StageName, digest: str) -> None:
        """Remove everything that is left of the attempts of an artifact."""

    def withdraw(self, stage: StageName, digest: str) -> None:
        """The artifact is not published any more; its manifest goes first."""

    def abilities(self) -> dict[str, bool | str]:
        """What was tried on the store just now. Raises TaskError if it cannot do what we rely on."""

    def verify(self, manifest: Manifest) -> list[str]:
        """Every file of the artifact hashed anew; what does not fit, in words."""


def open_store(ref: StoreRef) -> Store:
    """The store at ``ref.uri``. Raises TaskError when the URI is neither file:///folder nor s3://bucket/prefix."""
    parts = urlsplit(ref.uri)
    if ref.uri.startswith("file:///"):
        from egt_pipeline.store_file import FileStore

        return FileStore(Path(ref.uri.removeprefix("file://")))  # the path as it is: # and ? are characters of it
    if parts.scheme == "s3" and parts.netloc:
        from egt_pipeline.store_s3 import S3Store

        return S3Store(ref, bucket=parts.netloc, prefix=parts.path.strip("/"))
    raise TaskError(f"store.uri: {ref.uri!r} is neither file:///folder nor s3://bucket/prefix")


def safe_path(name: str) -> PurePosixPath:
    """``name`` as a relative path. Raises ArtifactError when it could leave the directory it is meant for."""
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ArtifactError(f"{name!r}: not a plain relative path")
    return path


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file, read once."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of every file below ``directory``, sorted by name. Raises TaskError at a symlink."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise TaskError(f"{path}: a stage left a symbolic link; only files are published")
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path


def mismatch(name: str, entry: FileEntry, sha256: str, size_bytes: int) -> str | None:
    """What is wrong with a file, in words; None when it is what its manifest says."""
    if size_bytes != entry.size_bytes:
        return f"{name}: {size_bytes} bytes, its manifest says {entry.size_bytes}"
    if sha256 != entry.sha256:
        return f"{name}: SHA-256 {sha256[:16]}.., its manifest says {entry.sha256[:16]}.."
    return None


def parse_manifest(text: bytes, where: str, stage: StageName, digest: str) -> Manifest:
    """The manifest in ``text``.

    Raises ArtifactError naming ``where`` when it is damaged, of another artifact, or leads out of its place.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors()
        rest = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ArtifactError(f"{where}: not a manifest: {in_words(wrong[0])}{rest}") from None
    if (manifest.stage, manifest.digest) != (stage, digest):
        raise ArtifactError(f"{where}: is the manifest of {manifest.stage}/{manifest.digest}")
    for entry in manifest.files:
        safe_path(entry.path)
        safe_path(entry.key)
    return manifest


@contextmanager
def disk_full_is_named(where: Path | str) -> Iterator[None]:
    """Turns a full disk (or quota) into DiskFullError naming ``where``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFullError(f"{error.filename or where}: {os.strerror(error.errno)}") from error


def check_space(folder: Path) -> None:
    """Raises DiskFullError when the disk of ``folder`` is full.

    Asked after a child process failed: what torch and safetensors say about a full disk does not name it.
    """
    free = shutil.disk_usage(folder).free
    if free < _FULL_BYTES:
        raise DiskFullError(f"{folder}: {os.strerror(errno.ENOSPC)} ({free} bytes free)")

"""The store on a file system: an artifact is built aside and appears by one rename of its directory."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import FileEntry, Manifest
from egt_pipeline.store import (
    MANIFEST,
    disk_full_is_named,
    files_below,
    hash_file,
    mismatch,
    parse_manifest,
    safe_path,
)

# Committed work is a directory, also for a single file. It appears by rename, so it is complete.
_CHECKSUMS = "checksums.txt"
_STALE_SECONDS = 7 * 86_400.0  # no attempt lasts that long: its folder is left over from a kill
_SINGLE = "content"  # a single file's name in it


class FileStore:
    """A ``store.Store`` below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _artifact(self, stage: StageName, digest: str) -> Path:
        return self._root / "artifacts" / stage / digest

    def _attempts(self, stage: StageName, digest: str) -> Path:
        return self._root / "attempts" / stage / digest

    def manifest(self, stage: StageName, digest: str) -> Manifest | None:
        """See ``store.Store``."""
        path = self._artifact(stage, digest) / MANIFEST
        try:
            return parse_manifest(path.read_bytes(), str(path), stage, digest)
        except FileNotFoundError:
            return None

    def require(self, stage: StageName, digest: str) -> Manifest:
        """See ``store.Store``."""
        found = self.manifest(stage, digest)
        if found is None:
            raise ArtifactError(f"{self._artifact(stage, digest)}: not published; run {stage} again")
        return found

    def workspace(self, stage: StageName, digest: str, attempt: int, scratch: Path) -> Path:
        """See ``store.Store``. On the store's own file system, so that publishing is a rename."""
        with disk_full_is_named(self._root):
            folder = self._attempts(stage, digest) / f"a{attempt}-{secrets.token_hex(4)}"
            folder.mkdir(parents=True)
        return folder

    def publish(self, directory: Path, manifest: Manifest) -> Manifest:
        """See ``store.Store``."""
        target = self._artifact(manifest.stage, manifest.digest)
        with disk_full_is_named(target):
            entries = []
            for name, path in files_below(directory):
                _sync(path)
                sha256, size = hash_file(path)
                entries.append(FileEntry(path=name, key=name, size_bytes=size, sha256=sha256))
            complete = manifest.model_copy(update={"files": tuple(entries)})
            (directory / MANIFEST).write_text(complete.model_dump_json(indent=1) + "\n")
            _sync(directory / MANIFEST)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _rename_once(directory, target):
                shutil.rmtree(directory)
                return self.require(manifest.stage, manifest.digest)
        return complete

    def fetch(self, manifest: Manifest, cache: Path) -> Path:
        """See ``store.Store``. Files are verified where they lie; nothing is copied."""
        problems = self.verify(manifest)
        if problems:
            raise ArtifactError("; ".join(problems))
        return self._artifact(manifest.stage, manifest.digest)

    def verify(self, manifest: Manifest) -> list[str]:
        """See ``store.Store``."""
        folder = self._artifact(manifest.stage, manifest.digest)
        problems = []
        for entry in manifest.files:
            path = folder / safe_path(entry.key)
            if not path.is_file():
                problems.append(f"{path}: is missing")
                continue
            sha256, size = hash_file(path)
            problem = mismatch(str(path), entry, sha256, size)
            problems += [problem] if problem else []
        return problems

    def work(self, stage: StageName, digest: str) -> "FileWork":
        """See ``store.Store``."""
        return FileWork(self._attempts(stage, digest) / "work")

    def discard_work(self, stage: StageName, digest: str) -> None:
        """See ``store.Store``. What another attempt writes into is left to it."""
        attempts = self._attempts(stage, digest)
        shutil.rmtree(attempts / "work", ignore_errors=True)
        for folder in attempts.iterdir() if attempts.is_dir() else ():
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def withdraw(self, stage: StageName, digest: str) -> None:
        """See ``store.Store``."""
        folder = self._artifact(stage, digest)
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def abilities(self) -> dict[str, bool | str]:
        """See ``store.Store``: files can be written, and a second writer is refused."""
        trial = self._root / "attempts" / f"trial-{secrets.token_hex(4)}"
        with disk_full_is_named(self._root):
            for number in (1, 2):
                (trial / str(number)).mkdir(parents=True)
                (trial / str(number) / "file").write_text("trial")
            first = _rename_once(trial / "1", trial / "target")
            second = _rename_once(trial / "2", trial / "target")
            shutil.rmtree(trial)
        if not first or second:
            raise TaskError(f"store.uri: {self._root} does not refuse a second writer; use another file system")
        return {"conditional_create": True, "checksums": "sha256 of every file, by us"}


class FileWork:
    """A ``context.Work`` below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        """See ``context.Work``."""
        return (self._root / safe_path(name)).exists()

    def commit(self, name: str, source: Path) -> bool:
        """See ``context.Work``."""
        target = self._root / safe_path(name)
        if target.exists():
            return False
        aside = self._root / ".aside" / secrets.token_hex(8)
        try:
            with disk_full_is_named(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy_with_checksums(source, aside)
                return _rename_once(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def fetch(self, name: str, target: Path) -> bool:
        """See ``context.Work``."""
        source = self._root / safe_path(name)
        if not source.exists():
            return False
        with disk_full_is_named(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if _check(source) == [_SINGLE]:
                shutil.copyfile(source / _SINGLE, target)
            else:
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_CHECKSUMS))
        return True

    def names(self, prefix: str) -> list[str]:
        """See ``context.Work``."""
        found = _committed(self._root / safe_path(prefix.rstrip("/")))
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def discard(self, name: str) -> None:
        """See ``context.Work``."""
        path = self._root / safe_path(name)
        if path.exists():
            aside = self._root / ".aside" / secrets.token_hex(8)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)  # at once, so half of it is never taken for the whole
            shutil.rmtree(aside)


def _copy_with_checksums(source: Path, target: Path) -> None:
    if source.is_file():
        target.mkdir(parents=True)
        shutil.copyfile(source, target / _SINGLE)
    else:
        shutil.copytree(source, target)
    lines = []
    for name, path in files_below(target):
        _sync(path)
        lines.append(f"{hash_file(path)[0]}  {name}\n")
    (target / _CHECKSUMS).write_text("".join(lines))
    _sync(target / _CHECKSUMS)


def _committed(folder: Path) -> Iterator[Path]:
    """What was committed, at any depth."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if (path / _CHECKSUMS).exists():
            yield path
        elif path.is_dir():
            yield from _committed(path)


def _check(folder: Path) -> list[str]:
    """The names of the files in committed work. Raises ArtifactError naming the one that is missing or changed."""
    names = []
    for line in (folder / _CHECKSUMS).read_text().splitlines():
        sha256, _, name = line.partition("  ")
        path = folder / safe_path(name)
        if not path.is_file():
            raise ArtifactError(f"{path}: is missing")
        if hash_file(path)[0] != sha256:
            raise ArtifactError(f"{path}: changed since it was committed")
        names.append(name)
    return names


def _rename_once(source: Path, target: Path) -> bool:
    """Move a directory; False, with nothing changed, if the target exists already."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _sync(target.parent)
    return True


def _sync(path: Path) -> None:
    """Make sure that a file or directory survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

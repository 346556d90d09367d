"""The store on S3 or anything that speaks it.

A file is uploaded under a key of its attempt, which no other attempt has, so none overwrites another's bytes; the one
object that decides is ``manifest.json``, created with ``If-None-Match: *``. Every body carries a checksum that the
server checks, and every body that comes back is hashed before it is used.
"""

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import FileEntry, Manifest, StoreRef
from egt_pipeline.s3_requests import connect, delete_below, get_bytes, keys_below, put_if_absent, translated
from egt_pipeline.s3_transfer import Transfer
from egt_pipeline.store import MANIFEST, disk_full_is_named, files_below, mismatch, parse_manifest, safe_path

_DIRECTORY = "directory.json"  # written last into a committed directory: its files and their checksums
_FILES_AT_ONCE = 16  # more gains nothing on one client; each holds at most one part in memory


class S3Store:
    """A ``store.Store`` below a prefix of a bucket."""

    def __init__(self, ref: StoreRef, *, bucket: str, prefix: str) -> None:
        self._client = connect(ref)
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._transfer = Transfer(self._client, bucket)
        self._pool = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="s3")

    def _artifact(self, stage: StageName, digest: str) -> str:
        return f"{self._prefix}artifacts/{stage}/{digest}/"

    def _attempts(self, stage: StageName, digest: str) -> str:
        return f"{self._prefix}attempts/{stage}/{digest}/"

    def manifest(self, stage: StageName, digest: str) -> Manifest | None:
        """See ``store.Store``."""
        key = self._artifact(stage, digest) + MANIFEST
        body = get_bytes(self._client, self._bucket, key)
        return None if body is None else parse_manifest(body, f"s3://{self._bucket}/{key}", stage, digest)

    def require(self, stage: StageName, digest: str) -> Manifest:
        """See ``store.Store``."""
        found = self.manifest(stage, digest)
        if found is None:
            place = f"s3://{self._bucket}/{self._artifact(stage, digest)}"
            raise ArtifactError(f"{place}: not published; run {stage} again")
        return found

    def workspace(self, stage: StageName, digest: str, attempt: int, scratch: Path) -> Path:
        """See ``store.Store``."""
        with disk_full_is_named(scratch):
            folder = scratch / f"out-{stage}-a{attempt}-{secrets.token_hex(4)}"
            folder.mkdir(parents=True)
        return folder

    def publish(self, directory: Path, manifest: Manifest) -> Manifest:
        """See ``store.Store``."""
        prefix = self._artifact(manifest.stage, manifest.digest)
        entries = self._upload_all(directory, prefix)
        complete = manifest.model_copy(update={"files": entries})
        body = (complete.model_dump_json(indent=1) + "\n").encode()
        if put_if_absent(self._client, self._bucket, prefix + MANIFEST, body):
            return complete
        for entry in entries:  # nobody will ever read them
            delete_below(self._client, self._bucket, prefix + entry.key)
        return self.require(manifest.stage, manifest.digest)

    def _upload_all(self, directory: Path, prefix: str) -> tuple[FileEntry, ...]:
        attempt = secrets.token_hex(8)

        def upload(item: tuple[str, Path]) -> FileEntry:
            name, path = item
            sha256, size = self._transfer.upload(path, f"{prefix}{attempt}/{name}")
            return FileEntry(path=name, key=f"{attempt}/{name}", size_bytes=size, sha256=sha256)

        with translated(f"s3://{self._bucket}/{prefix}"):
            return tuple(self._pool.map(upload, files_below(directory)))

    def fetch(self, manifest: Manifest, cache: Path) -> Path:
        """See ``store.Store``. A file that is in the cache already is verified and not downloaded again."""
        prefix = self._artifact(manifest.stage, manifest.digest)
        target = cache / manifest.stage / manifest.digest
        self._download_all(prefix, manifest.files, target)
        return target

    def _download_all(self, prefix: str, entries: tuple[FileEntry, ...], target: Path) -> None:
        def download(entry: FileEntry) -> None:
            self._transfer.download(prefix + entry.key, target / safe_path(entry.path), entry)

        with disk_full_is_named(target), translated(f"s3://{self._bucket}/{prefix}"):
            target.mkdir(parents=True, exist_ok=True)
            list(self._pool.map(download, entries))

    def verify(self, manifest: Manifest) -> list[str]:
        """See ``store.Store``. Every byte is downloaded and hashed, none is kept."""
        prefix = self._artifact(manifest.stage, manifest.digest)

        def check(entry: FileEntry) -> str | None:
            place = f"s3://{self._bucket}/{prefix}{entry.key}"
            found = self._transfer.hash_object(prefix + safe_path(entry.key).as_posix())
            return f"{place}: is missing" if found is None else mismatch(place, entry, *found)

        with translated(f"s3://{self._bucket}/{prefix}"):
            return [problem for problem in self._pool.map(check, manifest.files) if problem]

    def work(self, stage: StageName, digest: str) -> "S3Work":
        """See ``store.Store``."""
        return S3Work(self, self._client, self._bucket, self._attempts(stage, digest) + "work/")

    def discard_work(self, stage: StageName, digest: str) -> None:
        """See ``store.Store``."""
        delete_below(self._client, self._bucket, self._attempts(stage, digest))

    def withdraw(self, stage: StageName, digest: str) -> None:
        """See ``store.Store``."""
        prefix = self._artifact(stage, digest)
        delete_below(self._client, self._bucket, prefix + MANIFEST)
        delete_below(self._client, self._bucket, prefix)

    def abilities(self) -> dict[str, bool | str]:
        """See ``store.Store``: a second writer is refused, a wrong checksum is refused, what was put comes back."""
        key = f"{self._prefix}attempts/trial-{secrets.token_hex(4)}"
        place = f"s3://{self._bucket}/{self._prefix}"
        first = put_if_absent(self._client, self._bucket, key, b"first")
        second = put_if_absent(self._client, self._bucket, key, b"second")
        back = get_bytes(self._client, self._bucket, key)
        refused = self._transfer.refuses_wrong_checksum(key)
        delete_below(self._client, self._bucket, key)
        if not first or second or back != b"first":
            raise TaskError(f"store.uri: {place} does not honour If-None-Match; two runs could overwrite each other")
        return {"conditional_create": True, "checksum_on_upload": refused}


class S3Work:
    """A ``context.Work`` below a prefix of a bucket."""

    def __init__(self, store: S3Store, client: Any, bucket: str, prefix: str) -> None:
        self._store, self._client, self._bucket, self._prefix = store, client, bucket, prefix

    def _key(self, name: str) -> str:
        return self._prefix + safe_path(name).as_posix()

    def has(self, name: str) -> bool:
        """See ``context.Work``."""
        return self._record(name) is not None

    def _record(self, name: str) -> tuple[FileEntry, ...] | None:
        body = get_bytes(self._client, self._bucket, f"{self._key(name)}/{_DIRECTORY}")
        return None if body is None else tuple(FileEntry.model_validate(entry) for entry in json.loads(body))

    def commit(self, name: str, source: Path) -> bool:
        """See ``context.Work``."""
        folder = source if source.is_dir() else None
        single = source if folder is None else None
        prefix = self._key(name) + "/"
        entries = self._store._upload_all(folder, prefix) if folder else self._upload_one(single, prefix)
        body = json.dumps([entry.model_dump() for entry in entries]).encode()
        return put_if_absent(self._client, self._bucket, prefix + _DIRECTORY, body)

    def _upload_one(self, path: Path | None, prefix: str) -> tuple[FileEntry, ...]:
        assert path is not None
        key = secrets.token_hex(8)
        with translated(prefix):
            sha256, size = self._store._transfer.upload(path, prefix + key)
        return (FileEntry(path=".", key=key, size_bytes=size, sha256=sha256),)

    def fetch(self, name: str, target: Path) -> bool:
        """See ``context.Work``."""
        entries = self._record(name)
        if entries is None:
            return False
        prefix = self._key(name) + "/"
        if entries and entries[0].path == ".":
            with disk_full_is_named(target), translated(prefix):
                self._store._transfer.download(prefix + entries[0].key, target, entries[0])
            return True
        self._store._download_all(prefix, entries, target)
        return True

    def names(self, prefix: str) -> list[str]:
        """See ``context.Work``."""
        start = self._key(prefix.rstrip("/")) + "/"
        found = keys_below(self._client, self._bucket, start)
        records = (key.removeprefix(self._prefix) for key in found if key.endswith(f"/{_DIRECTORY}"))
        return sorted(record.removesuffix(f"/{_DIRECTORY}") for record in records)

    def discard(self, name: str) -> None:
        """See ``context.Work``. The record goes first, so half of it is never taken for the whole."""
        key = self._key(name)
        with translated(key):
            self._client.delete_object(Bucket=self._bucket, Key=f"{key}/{_DIRECTORY}")
        delete_below(self._client, self._bucket, key + "/")

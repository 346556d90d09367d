"""Bodies to S3 and back: one pass over each file, hashed on the way, in parts and in parallel when it is large."""

import base64
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.task import FileEntry
from egt_pipeline.store import READ_BYTES, hash_file, mismatch

PART_BYTES = 32 * 2**20  # fewer, larger parts cost less CPU than boto3's 8 MiB; 10,000 of them reach 320 GB
_PARTS_AT_ONCE = 6  # each holds one part in memory
# What S3 and those that speak it answer when a body does not fit its checksum.
_ARRIVED_DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")
_TRIES = 3  # of a body that arrived damaged, before it is called damaged at its source


class Transfer:
    """Uploads and downloads of one bucket."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._parts = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="s3-parts")

    def upload(self, path: Path, key_of: Callable[[str], str]) -> tuple[str, int, str]:
        """SHA-256, size and key of the uploaded file; the key is ``key_of`` the SHA-256."""
        size = path.stat().st_size
        if size <= PART_BYTES:
            body = path.read_bytes()
            digest = hashlib.sha256(body)
            key = key_of(digest.hexdigest())
            checksum = _base64(digest.digest())
            self._again(
                lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ChecksumSHA256=checksum)
            )
            return digest.hexdigest(), len(body), key
        sha256, size = hash_file(path)
        key = key_of(sha256)
        self._upload_parts(path, size, key)
        return sha256, size, key

    def _upload_parts(self, path: Path, size: int, key: str) -> None:
        begun = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256")
        upload = {"Bucket": self._bucket, "Key": key, "UploadId": begun["UploadId"]}

        def part(number: int) -> dict[str, Any]:
            with path.open("rb") as stream:
                stream.seek((number - 1) * PART_BYTES)
                body = stream.read(PART_BYTES)
            checksum = _base64(hashlib.sha256(body).digest())
            done = self._again(
                lambda: self._client.upload_part(**upload, PartNumber=number, Body=body, ChecksumSHA256=checksum)
            )
            return {"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": checksum}

        try:
            parts = list(self._parts.map(part, range(1, -(-size // PART_BYTES) + 1)))
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            self._client.abort_multipart_upload(**upload)
            raise

    def _again(self, send: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The answer to ``send``, which is repeated when its body arrived damaged."""
        for _ in range(_TRIES - 1):
            try:
                return send()
            except ClientError as error:
                if error.response["Error"]["Code"] not in _ARRIVED_DAMAGED:
                    raise
        return send()

    def download(self, key: str, target: Path, entry: FileEntry) -> None:
        """Bring an object to ``target``, verified; nothing happens if it is there already.

        Raises ArtifactError when it is missing, or arrives damaged again and again.
        """
        place = f"s3://{self._bucket}/{key}"
        if target.is_file() and mismatch(place, entry, *hash_file(target)) is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        problem: str | None = None
        try:
            for _ in range(_TRIES):
                try:
                    problem = self._receive(key, aside, entry)
                except BotoCoreError as error:  # the stream broke off; the next try starts anew
                    problem = f"{place}: {error}"
                if problem is None:
                    aside.replace(target)
                    return
        finally:
            aside.unlink(missing_ok=True)
        raise ArtifactError(f"{problem} ({_TRIES} tries)")

    def _receive(self, key: str, aside: Path, entry: FileEntry) -> str | None:
        place = f"s3://{self._bucket}/{key}"
        try:
            if entry.size_bytes <= PART_BYTES:
                digest = hashlib.sha256()
                size = 0
                with aside.open("wb") as stream:
                    for block in self._blocks(key):
                        digest.update(block)
                        size += stream.write(block)
                return mismatch(place, entry, digest.hexdigest(), size)
            self._receive_parts(key, aside, entry.size_bytes)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404", "InvalidRange"):
                return f"{place}: is missing or too short"
            raise
        return mismatch(place, entry, *hash_file(aside))

    def _receive_parts(self, key: str, aside: Path, size: int) -> None:
        with aside.open("wb") as whole:
            whole.truncate(size)
            descriptor = whole.fileno()

            def part(start: int) -> None:
                end = min(start + PART_BYTES, size)
                place = start
                for block in self._blocks(key, Range=f"bytes={start}-{end - 1}"):
                    os.pwrite(descriptor, block, place)
                    place += len(block)

            list(self._parts.map(part, range(0, size, PART_BYTES)))

    def _blocks(self, key: str, **options: Any) -> Iterator[bytes]:
        body = self._client.get_object(Bucket=self._bucket, Key=key, **options)["Body"]
        while block := body.read(READ_BYTES):
            yield block

    def hash_object(self, key: str) -> tuple[str, int] | None:
        """SHA-256 and size of what the store returns for ``key``; None if there is nothing."""
        digest = hashlib.sha256()
        size = 0
        try:
            for block in self._blocks(key):
                digest.update(block)
                size += len(block)
        except self._client.exceptions.NoSuchKey:
            return None
        return digest.hexdigest(), size

    def refuses_wrong_checksum(self, key: str) -> bool:
        """True if the store refuses a body that does not fit its checksum."""
        wrong = _base64(hashlib.sha256(b"another body").digest())
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=b"a body", ChecksumSHA256=wrong)
        except ClientError:
            return True
        return False


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

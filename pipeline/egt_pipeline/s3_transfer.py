"""Bodies to S3 and back: in parts and in parallel when a file is large, with its SHA-256 computed meanwhile.

On the way up, a CRC32 of each body tells the server whether it arrived as it was sent; the SHA-256 of the file, which
its manifest holds, tells every reader whether it is still what was published.
"""

import base64
import hashlib
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.task import FileEntry
from egt_pipeline.store import READ_BYTES, hash_file, mismatch

T = TypeVar("T")

# Larger parts than boto3's 8 MiB cost fewer requests, larger than 16 MiB more memory; 10,000 of them reach 160 GB.
PART_BYTES = 16 * 2**20
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

    def upload(self, path: Path, key: str) -> tuple[str, int]:
        """SHA-256 and size of the file, which lies at ``key`` afterwards."""
        if path.stat().st_size <= PART_BYTES:
            body = path.read_bytes()
            self._again(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **checksum(body)))
            return hashlib.sha256(body).hexdigest(), len(body)
        return self._upload_parts(path, key)

    def _upload_parts(self, path: Path, key: str) -> tuple[str, int]:
        begun = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, ChecksumAlgorithm="CRC32")
        upload = {"Bucket": self._bucket, "Key": key, "UploadId": begun["UploadId"]}

        def part(number: int) -> dict[str, Any]:
            with path.open("rb") as stream:
                stream.seek((number - 1) * PART_BYTES)
                body = stream.read(PART_BYTES)
            proof = checksum(body)
            done = self._again(lambda: self._client.upload_part(**upload, PartNumber=number, Body=body, **proof))
            return {"PartNumber": number, "ETag": done["ETag"], **proof}

        try:
            with self._under_way(part, range(1, -(-path.stat().st_size // PART_BYTES) + 1)) as parts:
                sha256, size = hash_file(path)
                sent = [each.result() for each in parts]
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})
        except BaseException:
            self._client.abort_multipart_upload(**upload)
            raise
        return sha256, size

    @contextmanager
    def _under_way(self, work: Callable[[int], T], items: range) -> Iterator[list[Future[T]]]:
        """``work`` of each item, begun in order; all of it is over when the context is left, also by an error."""
        futures = [self._parts.submit(work, item) for item in items]
        try:
            yield futures
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

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

        Raises ArtifactError when it is missing or arrives damaged again and again, BotoCoreError when the connection
        breaks off each time.
        """
        place = f"s3://{self._bucket}/{key}"
        if target.is_file() and mismatch(place, entry, *hash_file(target)) is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        problem: str | None = None
        try:
            for attempt in range(1, _TRIES + 1):
                try:
                    problem = self._receive(key, aside, entry)
                except BotoCoreError:  # the stream broke off; the next try starts anew
                    if attempt == _TRIES:
                        raise
                    continue
                if problem is None:
                    aside.replace(target)
                    return
        finally:
            aside.unlink(missing_ok=True)
        raise ArtifactError(f"{problem} ({_TRIES} tries)")

    def _receive(self, key: str, aside: Path, entry: FileEntry) -> str | None:
        place = f"s3://{self._bucket}/{key}"
        receive = self._receive_whole if entry.size_bytes <= PART_BYTES else self._receive_parts
        try:
            with aside.open("w+b") as file:
                found = receive(key, file, entry.size_bytes)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404", "InvalidRange"):
                return f"{place}: is missing or too short"
            raise
        return mismatch(place, entry, *found)

    def _receive_whole(self, key: str, file: BinaryIO, _: int) -> tuple[str, int]:
        digest = hashlib.sha256()
        for block in self._blocks(key):
            digest.update(block)
            file.write(block)
        return digest.hexdigest(), file.tell()

    def _receive_parts(self, key: str, file: BinaryIO, size: int) -> tuple[str, int]:
        descriptor = file.fileno()

        def part(start: int) -> None:
            place, end = start, min(start + PART_BYTES, size)
            for block in self._blocks(key, Range=f"bytes={start}-{end - 1}"):
                place += _write_at(descriptor, block, place)

        digest = hashlib.sha256()
        with self._under_way(part, range(0, size, PART_BYTES)) as parts:
            for number, each in enumerate(parts):
                each.result()
                for start in range(number * PART_BYTES, (number + 1) * PART_BYTES, READ_BYTES):
                    digest.update(os.pread(descriptor, READ_BYTES, start))
        return digest.hexdigest(), os.fstat(descriptor).st_size

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
        wrong = checksum(b"another body")
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=b"a body", **wrong)
        except ClientError:
            return True
        return False


def checksum(body: bytes) -> dict[str, str]:
    """The header by which the server checks that ``body`` arrived as it was sent."""
    return {"ChecksumCRC32": base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()}


def _write_at(descriptor: int, data: bytes, place: int) -> int:
    """The size of ``data``, all of it written: a call may write less, and says why only when it is asked again."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, memoryview(data)[written:], place + written)
    return written

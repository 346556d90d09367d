"""A client for S3 and its small requests: what decides, lists and deletes; bodies of files go by ``s3_transfer``.

The CRT transfer client is never used: it ignores custom endpoints.
"""

import base64
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from egt_pipeline.contract.errors import ArtifactError, TaskError, UnavailableError
from egt_pipeline.contract.task import StoreRef

_CONNECTIONS = 32  # kept open: more than files and parts that are under way at once, so none is opened anew
_CONFLICT_PAUSE_SECONDS = 0.2  # 409: two writers at once, one of which wins; ask again
# Wrong for good although the status is none of 401 and 403: no such bucket, its name or region is another, and
# versitygw's way to say that it does not know the key.
_NOT_THERE = ("NoSuchBucket", "InvalidBucketName", "AuthorizationHeaderMalformed", "XAdminUserNotFound")
_TRIES = 10  # of one request: with botocore's pauses about a minute


def connect(ref: StoreRef) -> Any:
    """A client for the store's endpoint; credentials come from the environment, as everywhere."""
    config = Config(
        retries={"mode": "standard", "max_attempts": _TRIES},
        connect_timeout=10,
        read_timeout=30,  # of one pause in the stream, not of the whole body
        max_pool_connections=_CONNECTIONS,
        # Every body has a checksum of ours, in a header that is signed; a second one would cost another pass over it.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": False, "addressing_style": "path" if ref.endpoint else "auto"},
    )
    return boto3.client(
        "s3", endpoint_url=ref.endpoint, region_name=ref.region or "us-east-1", verify=ref.ca_file, config=config
    )


class translated:  # noqa: N801 - reads as a phrase: with translated(place)
    """Turns what boto3 raises into errors with a meaning for a retry, naming the place."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ClientError):
            code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code in _NOT_THERE or (status in (401, 403) and code != "RequestTimeTooSkewed"):  # of this node's clock
                raise TaskError(f"{self._place}: {code}; check the bucket, its region and the credentials") from error
            raise UnavailableError(f"{self._place}: {error}") from error
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            raise TaskError(f"{self._place}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        if isinstance(error, BotoCoreError | BotoConnectionError | Boto3Error):
            raise UnavailableError(f"{self._place}: {error}") from error


def get_bytes(client: Any, bucket: str, key: str) -> bytes | None:
    """A small object whole, compared with the checksum it was put with; None if there is none.

    Raises ArtifactError when it comes back damaged each time.
    """
    with translated(f"s3://{bucket}/{key}"):
        for last in (False, False, True):
            try:
                body: bytes = client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")["Body"].read()
            except client.exceptions.NoSuchKey:
                return None
            except FlexibleChecksumError as error:
                if last:
                    raise ArtifactError(f"s3://{bucket}/{key}: is damaged: {error}") from error
            except BotoCoreError:  # the stream broke off
                if last:
                    raise
            else:
                return body
    raise AssertionError("unreachable")


def put_if_absent(client: Any, bucket: str, key: str, body: bytes) -> bool:
    """True if this call created the object, False if it was there."""
    checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
    with translated(f"s3://{bucket}/{key}"):
        for _ in range(_TRIES):
            try:
                client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*", ChecksumSHA256=checksum)
            except ClientError as error:
                code = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if code == 412:
                    # Our own first try may have arrived although its answer was lost.
                    return get_bytes(client, bucket, key) == body
                if code != 409:
                    raise
                time.sleep(_CONFLICT_PAUSE_SECONDS)
            else:
                return True
    raise UnavailableError(f"s3://{bucket}/{key}: conflicting writers, {_TRIES} times in a row")


def keys_below(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    """Every key that starts with ``prefix``."""
    with translated(f"s3://{bucket}/{prefix}"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from (entry["Key"] for entry in page.get("Contents", ()))


def delete_below(client: Any, bucket: str, prefix: str) -> None:
    """Remove every object that starts with ``prefix``."""
    for key in list(keys_below(client, bucket, prefix)):
        with translated(f"s3://{bucket}/{key}"):
            client.delete_object(Bucket=bucket, Key=key)

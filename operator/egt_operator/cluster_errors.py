"""What an API server's answer means for whoever asked."""

import json

from aiohttp import ClientError
from kubernetes.aio.client.exceptions import ApiException

_DENIED = "denied the request"  # as the API server says it of an admission webhook
TROUBLE = (ApiException, ClientError, OSError, TimeoutError)  # what passes, and is worth another try


class Conflict(Exception):  # noqa: N818 - what happened, not a fault
    """Somebody else has written the object, or made one of that name."""


class Refused(Exception):  # noqa: N818
    """The API server takes the object or the request for wrong, or does not allow it; again would end alike."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotServed(Exception):  # noqa: N818
    """The API server does not know a kind that the operator cannot do without."""


def meaning(error: ApiException) -> Exception:
    """What an answer means for whoever asked."""
    said = str(error.body or error.reason)
    try:
        message = json.loads(said)["message"]
    except (ValueError, KeyError, TypeError):
        message = said
    if error.status == 409:
        return Conflict(message)
    if error.status == 403 and _DENIED in message:
        return Refused(422, message)  # webhooks say no with 403, which else means that a permission is missing
    if error.status in (400, 403, 405, 413, 422):
        return Refused(error.status, message)
    return error


def told(error: BaseException) -> str:
    """An error in one line; the client's own text has many."""
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}: {error.body or ''}"[:500]
    return f"{type(error).__name__}: {error}"

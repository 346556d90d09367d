"""One conversation partner behind the chat-completions protocol: teachers and judges.

Network errors, time-outs, 429 and 5xx are retried with growing pauses (Retry-After is honoured) by the ``openai``
client; what is left after that is UnavailableError. A refused key or an unknown model is TaskError: no retry helps.
"""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import openai

from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.errors import TaskError, UnavailableError

_RETRIES = 6  # the client pauses 0.5 s, doubling up to 8 s: half a minute before a row counts as unavailable
REFUSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)  # the key, or the model
_HOPELESS = 2  # failed requests in a row for each that may be under way, before the rest is not even asked


@dataclass(frozen=True)
class Reply:
    """The text of one completion and what it cost."""

    text: str
    truncated: bool
    tokens_in: int
    tokens_out: int


class ServiceDownError(UnavailableError):
    """So many requests failed in a row that the service is taken to be down."""


class Chat:
    """Asks an endpoint, at most ``endpoint.concurrency`` requests at once; use as a context manager."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.Runner) -> None:
        self._endpoint = endpoint
        self._loop = loop
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._failures = 0  # in a row
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=api_key(endpoint),
            timeout=endpoint.timeout_seconds,
            max_retries=_RETRIES,
        )

    def __enter__(self) -> Self:
        """Raises UnavailableError at once when nothing listens at the address."""
        try:
            self._loop.run(self._reach())
        except UnavailableError:
            self._loop.run(self._client.close())
            raise
        return self

    async def _reach(self) -> None:
        try:
            await self._client.with_options(max_retries=1).models.list()
        except openai.APIConnectionError as error:
            raise UnavailableError(f"baseUrl: {self._endpoint.base_url}: {error} Is the service running?") from None
        except (openai.APIError, ValueError):
            return  # it listens; not every service lists its models

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._client.close())

    async def ask(self, messages: Sequence[dict[str, Any]], *, temperature: float, max_tokens: int, seed: int) -> Reply:
        """One completion. Raises UnavailableError when nobody answers, TaskError when the service refuses for good."""
        async with self._slots:
            if self._failures >= _HOPELESS * self._endpoint.concurrency:
                raise ServiceDownError(f"{self._endpoint.base_url}: given up after {self._failures} failures in a row")
            try:
                done = await self._client.chat.completions.create(
                    model=self._endpoint.model,
                    messages=messages,  # type: ignore[arg-type]
                    temperature=temperature,
                    max_tokens=max_tokens,
                    seed=seed,
                )
            except REFUSED as error:
                raise TaskError(refusal(self._endpoint, error)) from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return Reply(f"refused: {error}", truncated=False, tokens_in=0, tokens_out=0)
            except (openai.APIError, ValueError) as error:  # ValueError: a body that is not JSON
                self._failures += 1
                raise UnavailableError(f"{self._endpoint.base_url}: {error}") from None
        self._failures = 0
        return _reply(done)


def refusal(endpoint: Endpoint, error: Exception) -> str:
    """What is said of a service that answers with one of ``REFUSED``."""
    return f"{endpoint.base_url} refuses model {endpoint.model!r}: {error}"


def _reply(done: Any) -> Reply:
    """What a completion says; the client does not check its form, so whatever is no text counts as an empty one."""
    try:
        choice = done.choices[0]
        text = choice.message.content
        truncated = choice.finish_reason == "length"
    except (AttributeError, TypeError, IndexError):
        text, truncated = None, False
    usage = getattr(done, "usage", None)
    tokens_in, tokens_out = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(
        text if isinstance(text, str) else "",
        truncated=truncated,
        tokens_in=tokens_in if isinstance(tokens_in, int) else 0,
        tokens_out=tokens_out if isinstance(tokens_out, int) else 0,
    )


def api_key(endpoint: Endpoint) -> str:
    """The key from the environment. Raises TaskError naming the variable where a service needs one.

    Services without TLS, on this machine or inside a cluster, mostly need none; one that does refuses the request.
    """
    key = os.environ.get(endpoint.api_key_env)
    if key:
        return key
    if urlsplit(endpoint.base_url).scheme == "http":
        return "unused"
    raise TaskError(
        f"apiKeyEnv: the environment variable {endpoint.api_key_env} is empty; {endpoint.base_url} needs a key "
        f"(on a cluster: apiKeySecret names the Secret that holds it)"
    )


def seed_of(*parts: object) -> int:
    """A seed that follows from ``parts``, within the range that services accept."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4], "big") >> 1

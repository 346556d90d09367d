"""The few calls that a node agent makes to the API server."""

import asyncio
import base64
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
# One line of a watch is one object; the largest that etcd keeps is 1.5 MiB, and JSON on the wire may be longer.
LINE_BYTES = 2**24


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class NodeApi:
    """A session with the API server of a kubeconfig with a client certificate; made inside the running loop."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        context = ssl.create_default_context(cadata=decoded(cluster["certificate-authority-data"]))
        client = folder / "node-agent.pem"
        client.touch(mode=0o600)
        client.write_text(decoded(user["client-certificate-data"]) + decoded(user["client-key-data"]))
        context.load_cert_chain(client)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=LINE_BYTES,
        )

    async def call(self, method: str, path: str, body: Object | None = None, form: str = "application/json") -> Object:
        """The server's answer. Raises ApiError."""
        data = None if body is None else json.dumps(body)
        limit = aiohttp.ClientTimeout(total=30)
        headers = {"Content-Type": form}
        async with self.session.request(
            method, self.server + path, data=data, headers=headers, timeout=limit
        ) as answer:
            found: Object = await answer.json(content_type=None)
            if answer.status >= 300:
                raise ApiError(answer.status, str(found.get("message")))
            return found

    async def watch(self, path: str, see: Callable[[str, Object], None]) -> None:
        """`see` gets every object as it is and as it changes; LISTED with all uids at each new start. Never returns."""
        while True:
            try:
                listed = await self.call("GET", path)
                see("LISTED", {item["metadata"]["uid"]: item for item in listed["items"]})
                for item in listed["items"]:
                    see("ADDED", item)
                await self.follow(f"{path}?watch=1&resourceVersion={listed['metadata']['resourceVersion']}", see)
            except (aiohttp.ClientError, TimeoutError, ApiError):
                await asyncio.sleep(0.5)

    async def follow(self, path: str, see: Callable[[str, Object], None]) -> None:
        async with self.session.get(self.server + path) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                see(event["type"], event["object"])


def decoded(text: str) -> str:
    return base64.b64decode(text).decode()

"""The part of a kubelet's HTTPS service that `kubectl logs` and the operator ask for."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

FOLLOW_SECONDS = 0.1


def latest(content: bytes, query: dict[str, str]) -> bytes:
    """What of a log the query asks for."""
    if "tailLines" in query:
        count = int(query["tailLines"])
        content = b"".join(content.splitlines(keepends=True)[-count:] if count else [])
    return content[: int(query.get("limitBytes", len(content)))]


async def serve_logs(folder: Path, port: int, log_of: Callable[[str, str, str], Path | None]) -> web.AppRunner:
    """Logs are served on loopback to the API server, which shows its certificate.

    Args:
        folder: holds ca.crt, and gets the certificate of this server from the control plane's authority.
        log_of: the log of a namespace's pod's container; None where there is none.
    """

    async def logs(request: web.Request) -> web.StreamResponse:
        place = request.match_info
        log = log_of(place["namespace"], place["pod"], place["box"])
        if log is None:
            return web.Response(status=404, text=f"no log of {place['pod']}/{place['box']}\n")
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        with log.open("rb") as file:
            await answer.write(latest(file.read(), dict(request.query)))
            while request.query.get("follow") == "true" and not log.with_suffix(".ended").exists():
                await asyncio.sleep(FOLLOW_SECONDS)
                if more := file.read():
                    await answer.write(more)
        await answer.write_eof()
        return answer

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "kubelet.crt", folder / "kubelet.key")
    context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{box}", logs)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    return runner

"""A proxy in front of the S3 server that damages bodies and answers as networks do, a counted number of times."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["corrupt-upload", "corrupt-download", "truncate-download", "busy", "reset", "stall"]
STALL_SECONDS = 40.0  # longer than the client's read timeout


@dataclass
class Faults:
    """Which faults are still to happen. ``log`` tells what did, ``written`` to which paths somebody put something."""

    pending: dict[Fault, int] = field(default_factory=dict)
    log: list[Fault] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, fault: Fault, times: int) -> None:
        with self.lock:
            self.pending[fault] = times

    def take(self, fault: Fault) -> bool:
        with self.lock:
            if not self.pending.get(fault):
                return False
            self.pending[fault] -= 1
            self.log.append(fault)
            return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target_port: int
    faults: Faults

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.command == "PUT":
            self.faults.written.append(self.path.partition("?")[0])
        if self.faults.take("busy"):
            return self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
        if self.faults.take("reset"):
            return self._close()
        if self.faults.take("stall"):
            self.faults.released.wait(STALL_SECONDS)
            return self._close()
        if len(body) > 100 and self.command == "PUT" and self.faults.take("corrupt-upload"):
            body = flipped(body)
        upstream = http.client.HTTPConnection("127.0.0.1", self.target_port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        upstream.request(self.command, self.path, body=body or None, headers=headers)
        answer = upstream.getresponse()
        data = answer.read()
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding")
        }
        upstream.close()
        if self.command == "GET" and len(data) > 100 and answer.status in (200, 206):
            if self.faults.take("corrupt-download"):
                data = flipped(data)
            if self.faults.take("truncate-download"):
                return self._answer(answer.status, kept, data, sent=len(data) // 2)
        return self._answer(answer.status, kept, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _answer(self, status: int, headers: dict[str, str], data: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data[:sent])
        if sent is not None:
            self._close()

    def _close(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def flipped(data: bytes) -> bytes:
    """``data`` with one bit in its middle changed."""
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


@contextlib.contextmanager
def fault_proxy(target_port: int) -> Iterator[tuple[str, Faults]]:
    """The proxy's address and its faults, none at first."""
    faults = Faults()
    handler = type("Handler", (_Handler,), {"target_port": target_port, "faults": faults})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        faults.released.set()
        server.shutdown()
        thread.join()
        server.server_close()

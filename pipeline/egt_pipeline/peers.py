"""The pods of one attempt of a training, and the line between them.

Pod 0 leads: it says from which checkpoint all go on, and when it is over; any pod may ask it to stop. Everybody notices
within seconds when another one is gone, where gloo, NCCL and Ray would wait for minutes::

    pod 1 ── {"attempt": .., "rank": 1} ──► pod 0        when it comes
          ◄── {"checkpoint": ".."} ────────              once all are there: the one to go on from, or null
          ─── {"stop": true} ──────────────►             it was asked to stop
          ◄── {"over": true} ──────────────►             before an orderly end; a line that breaks without it is a loss
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from egt_pipeline.contract.errors import PeerLostError, StoppedError, TaskError

_POLL_SECONDS = 0.1
_READ_BYTES = 1 << 12
# A pod whose machine fell silent is given up after 10 + 4 x 5 s; one that ended is known to be gone at once.
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
# What a lost pod's node has to say of it is to be heard before what those say that were left alone.
_LAST_WORD_SECONDS = 3.0


@dataclass(frozen=True)
class Peers:
    """This is pod ``rank`` of the ``size`` pods of an attempt; pod 0 is reached at ``address``.

    ``port`` is for what the processes of a training talk over, the one after it for the line between their pods.
    """

    rank: int = 0
    size: int = 1
    address: str = "localhost"
    port: int = 0

    @property
    def leads(self) -> bool:
        """True for the pod that reports and publishes."""
        return self.rank == 0


ALONE = Peers()


def peers_of(environment: Mapping[str, str], pods: int) -> Peers:
    """The ``pods`` of the attempt as training-operator's variables name them.

    Raises TaskError naming the variable that is missing, is no number, or is for another number of pods.
    """
    if pods == 1:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    found = {name: environment.get(name, "") for name in names}
    for name, text in found.items():
        if not text or (name != "MASTER_ADDR" and not text.isdecimal()):
            raise TaskError(f"{name}: {text!r} is no {'name' if name == 'MASTER_ADDR' else 'number'}; for {pods} pods "
                            f"of a PyTorchJob {', '.join(names)} are needed")  # fmt: skip
    rank, size, port = (int(found[name]) for name in names[:3])
    if size != pods or rank >= size:
        raise TaskError(f"RANK {rank} of WORLD_SIZE {size}: the task is for {pods} pods")
    return Peers(rank, size, found["MASTER_ADDR"], port)


@dataclass
class _Wire:
    """One connection: messages as JSON lines."""

    socket: socket.socket
    rest: bytes = b""
    ended: bool = False
    over: bool = field(default=False)  # an orderly end was announced

    def __post_init__(self) -> None:
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            self.socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, **message: Any) -> None:
        """Tell the other side, if it is there: that it is not is seen by who listens."""
        with suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> list[dict[str, Any]]:
        """What has come in. ``ended`` once nothing more can come."""
        while not self.ended:
            try:
                block = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                block = b""
            self.ended = not block
            self.rest += block
        *lines, self.rest = self.rest.split(b"\n")
        found = [dict(json.loads(line)) for line in lines]
        self.over = self.over or any(message.get("over") for message in found)
        return found


class Line:
    """The line of one pod to the others; alone there is nobody to speak to. A context manager.

    Left without an error, or because of a stop, it tells the others that this is an orderly end.
    """

    def __init__(self, peers: Peers, attempt: str, stopping: Callable[[], bool]) -> None:
        self._peers, self._attempt, self._stopping = peers, attempt, stopping
        self._wires: dict[int, _Wire] = {}
        self._strangers: list[_Wire] = []
        self._server: socket.socket | None = None
        self._heard: list[str | None] = []
        self._stop_asked = self._stop_told = False

    def __enter__(self) -> Self:
        if self._peers.leads and self._peers.size > 1:
            self._server = socket.create_server(("", self._peers.port + 1), backlog=self._peers.size)
            self._server.setblocking(False)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        if isinstance(error, PeerLostError):
            time.sleep(_LAST_WORD_SECONDS)
        orderly = error is None or isinstance(error, StoppedError)
        for wire in [*self._wires.values(), *self._strangers]:
            if orderly:
                wire.send(over=True)
            wire.socket.close()
        if self._server is not None:
            self._server.close()

    @property
    def over(self) -> bool:
        """True once the leader has ended in order."""
        return not self._peers.leads and self._wires[0].over

    def tell(self, checkpoint: str | None) -> None:
        """Say as the leader from which checkpoint all go on, None for the start; waits until all are there."""
        while len(self._wires) < self._peers.size - 1:
            self._wait()
        for wire in self._wires.values():
            wire.send(checkpoint=checkpoint)

    def hear(self) -> str | None:
        """The checkpoint that the leader says all go on from."""
        while 0 not in self._wires:
            self._connect()
        while not self._heard:
            if self.over:
                raise StoppedError("the first pod of the attempt was stopped before all were there")
            self._wait()
        return self._heard[0]

    def stopping(self) -> bool:
        """True once this pod or, for the leader, any of them is asked to stop.

        Raises PeerLostError when another pod is gone without a word.
        """
        self._read()
        own = self._stopping()
        if own and not self._peers.leads and not self._stop_told:
            self._stop_told = True
            self._wires[0].send(stop=True)
        return own or self._stop_asked

    def settle(self, seconds: float) -> None:
        """After a failure of this pod: wait for a sign that another one caused it, and raise PeerLostError then."""
        deadline = time.monotonic() + seconds
        while self._wires and not self.over and time.monotonic() < deadline:
            self._read()
            time.sleep(_POLL_SECONDS)

    def _wait(self) -> None:
        if self.stopping():
            raise StoppedError("stopped on request while the pods of the attempt gathered")
        time.sleep(_POLL_SECONDS)

    def _connect(self) -> None:
        if self._stopping():
            raise StoppedError("stopped on request before the first pod of the attempt was there")
        with suppress(OSError):  # its name is not known yet, or nobody listens there yet
            connection = socket.create_connection((self._peers.address, self._peers.port + 1), timeout=5)
            self._wires[0] = _Wire(connection)
            self._wires[0].send(attempt=self._attempt, rank=self._peers.rank)
            return
        time.sleep(_POLL_SECONDS)

    def _read(self) -> None:
        self._welcome()
        for rank, wire in self._wires.items():
            for message in wire.messages():
                self._stop_asked = self._stop_asked or "stop" in message or (self._peers.leads and wire.over)
                self._heard += [message["checkpoint"]] if "checkpoint" in message else []
            if wire.ended and not wire.over:
                raise PeerLostError(f"pod {rank} of {self._peers.size} does not answer any more")

    def _welcome(self) -> None:
        """Take those in who name this attempt and a place that is free; close all other connections."""
        while self._server is not None:
            try:
                connection, _ = self._server.accept()
            except BlockingIOError:
                break
            self._strangers.append(_Wire(connection))
        for wire in list(self._strangers):
            try:
                said = wire.messages()
            except (TypeError, ValueError):  # somebody who speaks another language
                said, wire.ended = [], True
            if not said and not wire.ended:
                continue
            self._strangers.remove(wire)
            rank = said[0].get("rank", 0) if said and said[0].get("attempt") == self._attempt else 0
            if rank in range(1, self._peers.size) and rank not in self._wires:
                self._wires[rank] = wire
            else:
                wire.socket.close()

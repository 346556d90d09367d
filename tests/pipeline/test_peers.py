"""The line between the pods of an attempt, each a thread here, on real sockets."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from build_context import free_ports
from egt_pipeline.contract.errors import EgtError, PeerLostError, StoppedError, TaskError
from egt_pipeline.peers import ALONE, Line, Peers, peers_of

VARIABLES = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "run-sft-a1-master-0", "MASTER_PORT": "23456"}


def test_the_pods_are_those_of_training_operators_variables() -> None:
    assert peers_of(VARIABLES, 2) == Peers(1, 2, "run-sft-a1-master-0", 23456)
    assert peers_of({**VARIABLES, "WORLD_SIZE": "1"}, 1) == ALONE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: '' is no name"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT: 'http' is no number"),
        ({"WORLD_SIZE": "3"}, "RANK 1 of WORLD_SIZE 3: the task is for 2 pods"),
        ({"RANK": "2"}, "RANK 2 of WORLD_SIZE 2"),
    ],
)
def test_variables_that_do_not_fit_the_task_are_named(changes: dict[str, str], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        peers_of({**VARIABLES, **changes}, 2)


def together(*pods: Callable[[Line], Any], stopping: Callable[[int], bool] = lambda _: False) -> list[Any]:
    """What each pod's function returns, or the error that left its line."""
    port = free_ports(2)

    def run(rank: int) -> Any:
        try:
            with Line(Peers(rank, len(pods), "127.0.0.1", port), "1", lambda: stopping(rank)) as line:
                return pods[rank](line)
        except EgtError as error:
            return error

    with ThreadPoolExecutor(len(pods)) as pool:
        return list(pool.map(run, range(len(pods))))


def until_it_is_over(line: Line) -> str | None:
    heard = line.hear()
    while not line.over:
        line.stopping()
    return heard


def test_all_pods_hear_the_leaders_checkpoint_and_when_it_is_over() -> None:
    assert together(lambda line: line.tell("step-7"), until_it_is_over, until_it_is_over) == [None, "step-7", "step-7"]


def lead_until_a_stop(line: Line) -> str:
    line.tell(None)
    while not line.stopping():
        time.sleep(0.01)
    return "stopped"


def test_a_pod_that_is_asked_to_stop_stops_the_leader() -> None:
    heard: list[str | None] = []

    def follow(line: Line) -> None:
        heard.append(line.hear())
        until_it_is_over(line)

    assert together(lead_until_a_stop, follow, stopping=lambda rank: rank == 1 and bool(heard)) == ["stopped", None]


def test_a_pod_that_leaves_in_order_stops_the_leader_too() -> None:
    assert together(lead_until_a_stop, lambda line: line.hear()) == ["stopped", None]


def fail(line: Line) -> None:
    line.hear()
    raise TaskError("bad data")


def wait_for_ever(line: Line) -> None:
    line.tell(None)
    while True:
        line.stopping()


def test_the_pods_that_are_left_end_when_one_is_gone() -> None:
    lost, failed, also_lost = together(wait_for_ever, fail, until_it_is_over)
    assert isinstance(lost, PeerLostError)
    assert isinstance(failed, TaskError)
    assert isinstance(also_lost, PeerLostError)
    assert str(lost) == "pod 1 of 3 does not answer any more"


def test_a_stop_is_an_orderly_end() -> None:
    def stop(line: Line) -> None:
        line.tell("step-7")
        raise StoppedError("asked to")

    assert together(stop, until_it_is_over)[1] == "step-7"


def test_a_failure_is_blamed_on_the_pod_that_is_gone() -> None:
    def lead(line: Line) -> None:
        line.tell(None)
        line.settle(30)

    assert isinstance(together(lead, fail)[0], PeerLostError)


def test_strangers_and_other_attempts_are_turned_away() -> None:
    port = free_ports(2)
    words = (b"GET / HTTP/1.1\r\n\r\n", b'{"attempt": "1", "rank": 1}\n', b'{"attempt": "2", "rank": 0}\n', b"[1]\n")
    with ThreadPoolExecutor(1) as pool, Line(Peers(0, 2, "127.0.0.1", port), "2", lambda: False) as line:
        telling = pool.submit(line.tell, "step-7")
        for word in words:
            with socket.create_connection(("127.0.0.1", port + 1)) as stranger:
                stranger.sendall(word)
                assert stranger.recv(10) == b""
        with Line(Peers(1, 2, "127.0.0.1", port), "2", lambda: False) as friend:
            assert friend.hear() == "step-7"
            telling.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_asked_to_stop_does_not_wait_for_the_others(rank: int) -> None:
    with Line(Peers(rank, 2, "127.0.0.1", free_ports(2)), "1", lambda: True) as line:
        wait: Callable[[], object] = line.hear if rank else lambda: line.tell(None)
        with pytest.raises(StoppedError):
            wait()

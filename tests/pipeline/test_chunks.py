from collections import Counter

import pytest

from egt_pipeline.chunks import Chunk, cut, share
from simulated_workers import Simulation, Worker, fleet


class Board:
    """A board that a test writes on."""

    def __init__(self, committed=(), claimed=()):
        self._committed, self._claimed = set(committed), set(claimed)

    def committed(self):
        return self._committed

    def claimed(self):
        return self._claimed

    def claim(self, name):
        if name in self._claimed:
            return False
        self._claimed.add(name)
        return True

    def commit(self, *chunks):
        self._committed |= {chunk.name for chunk in chunks}


CHUNKS = cut(list(range(60)), 10)


def numbers(chunks):
    return [chunk.number for chunk in chunks]


def test_every_worker_begins_with_chunks_of_its_own_in_their_order():
    for worker in range(2):
        found = share(CHUNKS, worker, 2, Board())
        assert numbers(next(found) for _ in range(3)) == [worker, worker + 2, worker + 4]


def test_a_worker_alone_makes_each_chunk_once_whether_or_not_it_commits_before_the_next():
    assert numbers(share(CHUNKS, 0, 1, Board())) == list(range(6))
    board, made = Board(), []
    for chunk in share(CHUNKS, 0, 1, board):
        board.commit(chunk)
        made.append(chunk.number)
    assert made == list(range(6))


def test_what_is_committed_is_left_out():
    assert numbers(share(CHUNKS, 0, 1, Board(committed=[CHUNKS[0].name, CHUNKS[3].name]))) == [1, 2, 4, 5]
    assert numbers(share(CHUNKS, 0, 1, Board(committed=[chunk.name for chunk in CHUNKS]))) == []


def test_a_helper_takes_what_nobody_has_claimed_before_what_somebody_has():
    board = Board(claimed=[CHUNKS[5].name])
    board.commit(CHUNKS[0], CHUNKS[2], CHUNKS[4])
    assert numbers(share(CHUNKS, 0, 2, board)) == [3, 1, 5]  # whoever claimed the last may be dead


def test_an_owner_leaves_what_a_helper_has_claimed_until_nothing_else_is_left():
    assert numbers(share(CHUNKS, 0, 1, Board(claimed=[CHUNKS[1].name]))) == [0, 2, 3, 4, 5, 1]


def test_nothing_is_left_once_the_artifact_has_replaced_the_chunks():
    board = Board()
    found = share(CHUNKS, 0, 2, board)
    board.commit(next(found))
    next(found)
    board.committed().clear()
    next(found)
    assert list(found) == []


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_all_chunks_are_made_whatever_the_number_of_workers_and_the_order_in_which_they_come(workers):
    board = Board()
    shares = [share(CHUNKS, worker, workers, board) for worker in range(workers)]
    made = Counter()
    while shares:
        for one in list(shares):
            if (chunk := next(one, None)) is None:
                shares.remove(one)
            else:
                board.commit(chunk)
                made[chunk.number] += 1
    assert made == Counter(range(6))


def test_names_of_chunks_sort_as_their_numbers_do_and_hold_their_group():
    assert Chunk("", 7, ()).name == "chunks/part-000007.parquet"
    assert Chunk("sft.heldout.", 7, ()).name == "chunks/sft.heldout.part-000007.parquet"


def test_32_workers_of_which_some_are_slow_and_two_are_lost_end_together_and_lose_nothing():
    workers = fleet()
    outcome = Simulation(workers, rows=100_000, chunk_rows=64, seed=0).run()
    assert len(outcome.made) == 1563
    assert outcome.makespan_seconds <= 1.05 * outcome.ideal_seconds
    assert sum(outcome.made.values()) - len(outcome.made) <= 2 * len(workers)  # those open at the end


def test_a_slow_worker_is_helped_by_the_others():
    workers = [Worker(speed=1), Worker(speed=10), Worker(speed=10)]
    outcome = Simulation(workers, rows=20_000, chunk_rows=64, seed=1).run()
    assert outcome.makespan_seconds <= 1.1 * outcome.ideal_seconds

"""Checkpoints that several pods commit in parts; the line between them is real, its pods are threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from build_context import free_ports
from egt_pipeline.checkpoints import Checkpoints
from egt_pipeline.context import Context
from egt_pipeline.contract.errors import EgtError
from egt_pipeline.peers import Peers
from egt_pipeline.store_file import FileWork


def pod(folder: Path, rank: int, attempt: int, port: int = 0) -> Context:
    peers = Peers(rank, 2, "127.0.0.1", port)
    return Context(folder, FileWork(folder / "work"), refs={}, attempt=attempt, processes=4, peers=peers)


def commit(folder: Path, rank: int, step: int, *, attempt: int = 1) -> None:
    """The pod's part holds what it alone has, and the first one's what all need."""
    part = folder / "part"
    part.mkdir()
    (part / f"optimiser-{rank}").write_text(f"attempt {attempt}")
    if rank == 0:
        (part / "weights").write_text("shared")
    with Checkpoints(pod(folder, rank, attempt)) as checkpoints:
        checkpoints.begin(step, part)
    assert not part.exists()


def resumed(folder: Path) -> list[tuple[int | None, list[str]] | EgtError]:
    """Step and files that each pod of a third attempt goes on with, or what kept it from that."""
    port = free_ports(2)

    def resume(rank: int) -> tuple[int | None, list[str]] | EgtError:
        context, target = pod(folder, rank, 3, port), folder / f"target-{rank}"
        try:
            with context.line() as line:
                step = Checkpoints(context).resume(target, line)
        except EgtError as error:
            return error
        return step, sorted(path.name for path in target.glob("*"))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(resume, range(2)))


def test_each_pod_gets_its_own_part_and_the_first_ones(tmp_path: Path) -> None:
    for rank in (1, 0):
        commit(tmp_path, rank, 10)
    assert resumed(tmp_path) == [(10, ["optimiser-0", "weights"]), (10, ["optimiser-0", "optimiser-1", "weights"])]


def test_without_a_checkpoint_all_start_at_the_start(tmp_path: Path) -> None:
    commit(tmp_path, 0, 10)
    assert resumed(tmp_path) == [(None, []), (None, [])]


def test_a_checkpoint_counts_once_every_pod_has_committed_its_part(tmp_path: Path) -> None:
    for rank, step in ((0, 10), (1, 10), (0, 20)):
        commit(tmp_path, rank, step)
    assert [found[0] for found in resumed(tmp_path) if isinstance(found, tuple)] == [10, 10]


def test_parts_of_two_attempts_are_no_checkpoint(tmp_path: Path) -> None:
    for rank, step, attempt in ((0, 10, 1), (1, 10, 1), (1, 20, 1), (0, 20, 2)):
        commit(tmp_path, rank, step, attempt=attempt)
    assert [found[0] for found in resumed(tmp_path) if isinstance(found, tuple)] == [10, 10]


def test_a_pod_drops_its_parts_from_before_the_newest_checkpoint(tmp_path: Path) -> None:
    for rank, step, attempt in ((0, 10, 1), (1, 10, 1), (1, 20, 1), (0, 20, 2), (1, 20, 2), (0, 30, 2)):
        commit(tmp_path, rank, step, attempt=attempt)
    folder = tmp_path / "work" / "checkpoints" / "processes-4-pods-2"
    left = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*/*"))
    assert left == ["pod-0/attempt-002/step-000020", "pod-0/attempt-002/step-000030", "pod-1/attempt-002/step-000020"]


def damage(folder: Path, rank: int) -> None:
    for other in (0, 1):
        commit(folder, other, 20)
    (file,) = folder.glob(f"work/checkpoints/*/pod-{rank}/*/step-000020/optimiser-{rank}")
    file.write_text("damaged")


def test_a_damaged_part_of_the_first_pod_is_left_out_by_all(tmp_path: Path) -> None:
    damage(tmp_path, 0)
    assert resumed(tmp_path) == [(None, []), (None, [])]


def test_a_damaged_part_of_another_pod_ends_the_attempt_and_is_left_out_by_the_next(tmp_path: Path) -> None:
    damage(tmp_path, 1)
    first, other = resumed(tmp_path)
    assert isinstance(other, EgtError)
    assert "the next attempt makes it again" in str(other)
    assert first == (20, ["optimiser-0", "weights"])  # what the line says next is that the other one is gone
    assert [found[0] for found in resumed(tmp_path) if isinstance(found, tuple)] == [None, None]


@pytest.mark.parametrize("pods", [1, 2])
def test_another_number_of_pods_or_processes_starts_anew(tmp_path: Path, pods: int) -> None:
    for rank in (0, 1):
        commit(tmp_path, rank, 10)
    context = Context(tmp_path, FileWork(tmp_path / "work"), refs={}, processes=4 // pods)
    with context.line() as line:
        assert Checkpoints(context).resume(tmp_path / "target", line) is None


class SlowWork(FileWork):
    """Commits wait until they may go on, and then fail if they are told to."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        super().__init__(folder)
        self.may_go_on, self.error = Event(), error

    def commit(self, name: str, source: Path) -> bool:
        assert self.may_go_on.wait(10)
        if self.error:
            raise self.error
        return super().commit(name, source)


def a_part(folder: Path, step: int) -> Path:
    part = folder / f"part-{step}"
    part.mkdir()
    (part / "weights").write_text(str(step))
    return part


def test_a_training_goes_on_while_a_checkpoint_is_committed(tmp_path: Path) -> None:
    work = SlowWork(tmp_path / "work")
    with Checkpoints(Context(tmp_path, work, refs={})) as checkpoints:
        checkpoints.begin(10, a_part(tmp_path, 10))
        assert checkpoints.under_way
        assert work.names("checkpoints") == []
        work.may_go_on.set()
    assert len(work.names("checkpoints")) == 1


def test_what_a_commit_failed_with_is_raised_before_the_next_one(tmp_path: Path) -> None:
    work = SlowWork(tmp_path / "work", EgtError("no room"))
    work.may_go_on.set()
    with Checkpoints(Context(tmp_path, work, refs={})) as checkpoints:
        checkpoints.begin(10, a_part(tmp_path, 10))
        with pytest.raises(EgtError, match="no room"):
            checkpoints.begin(20, a_part(tmp_path, 20))


def test_what_the_last_commit_failed_with_is_raised_at_the_end(tmp_path: Path) -> None:
    work = SlowWork(tmp_path / "work", EgtError("no room"))
    work.may_go_on.set()
    with pytest.raises(EgtError, match="no room"), Checkpoints(Context(tmp_path, work, refs={})) as checkpoints:
        checkpoints.begin(10, a_part(tmp_path, 10))

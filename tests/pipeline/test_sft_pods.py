"""The sft stage in two pods, which are two threads here: each with a scratch folder, a torchrun and a rank."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from build_context import free_ports
from build_sft import RECIPE, inputs_of
from egt_pipeline.context import Context
from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.contract.task import Progress
from egt_pipeline.peers import ALONE, Peers
from egt_pipeline.reward_model import load_model
from egt_pipeline.sft_job import Job, torchrun
from egt_pipeline.stages import sft
from egt_pipeline.store_file import FileWork

_STEPS = 12
_RECIPE = RECIPE.model_copy(update={"max_steps": _STEPS, "micro_batch_size": 2, "zero_stage": 2})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return inputs_of(tmp_path_factory.mktemp("inputs"))


def train(folder: Path, inputs: dict[str, Path], peers: Peers = ALONE, *, attempt: int = 1, stop: bool = False) -> Path:
    """The output of one attempt as the pod ``peers.rank`` has it; with ``stop`` it ends after two steps."""
    place, steps = folder / f"pod-{peers.rank}-a{attempt}", []
    out, scratch = place / "out", place / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()

    def progress(told: Progress) -> None:
        steps.append(int(told.done))

    context = Context(
        scratch=scratch,
        work=FileWork(folder / "work"),
        refs={},
        attempt=attempt,
        processes=peers.size,
        peers=peers,
        progress=progress,
        stopping=lambda: stop and len(steps) >= 2,
    )
    sft.run(_RECIPE, inputs, out, context)
    return out


def both(folder: Path, inputs: dict[str, Path], *, attempt: int, stop: bool = False) -> Path:
    """What the first of the two pods leaves."""
    port = free_ports(2)
    with ThreadPoolExecutor() as pool:
        pods = [
            pool.submit(train, folder, inputs, Peers(rank, 2, "127.0.0.1", port), attempt=attempt, stop=stop)
            for rank in (0, 1)
        ]
        pods[1].result()
        return pods[0].result()


def losses(out: Path) -> list[float]:
    found: list[float] = pq.read_table(out / "losses.parquet")["loss"].to_pylist()
    return found


def test_two_pods_stop_with_a_checkpoint_and_go_on_with_the_losses_of_one(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    with pytest.raises(StoppedError):
        both(tmp_path, inputs, attempt=1, stop=True)
    parts = sorted(path.relative_to(tmp_path / "work").parts for path in tmp_path.glob("work/checkpoints/*/*/*/*"))
    assert [part[2:4] for part in parts] == [("pod-0", "attempt-001"), ("pod-1", "attempt-001")]
    (step,) = {part[-1] for part in parts}
    assert 2 <= int(step[-6:]) < _STEPS
    out = both(tmp_path, inputs, attempt=2)
    one = train(tmp_path / "one", inputs)
    assert losses(out) == pytest.approx(losses(one), abs=1e-4)
    assert losses(one)[-1] < losses(one)[0] - 0.5
    load_model(out / "model", "float32")
    assert not (tmp_path / "pod-1-a2" / "out" / "model").exists()


def test_torchrun_is_told_where_the_pods_meet() -> None:
    folder = Path("/scratch")
    job = Job(
        recipe=_RECIPE, processes=8, peers=Peers(1, 2, "run-sft-a1-master-0", 23456), model=folder, images=folder,
        samples=folder, out=folder, checkpoints=folder, resume=None, events=folder, stop=folder,
    )  # fmt: skip
    words = " ".join(torchrun(job))
    place = "--nnodes 2 --node-rank 1 --master-addr run-sft-a1-master-0 --master-port 23456"
    assert words == f"torch.distributed.run {place} --nproc-per-node 4"
    alone = job.model_copy(update={"peers": ALONE})
    assert "--standalone --nproc-per-node 8" in " ".join(torchrun(alone))

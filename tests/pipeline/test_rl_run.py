"""OpenRLHF's command line, made of a run."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.training import LoRA
from egt_pipeline.curriculum import PlannedStep
from egt_pipeline.peers import ALONE, Peers
from egt_pipeline.rl_run import RunFile, arguments, in_pods, logical_devices


def described(recipe: RLRecipe, *, processes: int = 1, peers: Peers = ALONE, resume: bool = False) -> RunFile:
    folder = Path("/run")
    return RunFile(
        recipe=recipe,
        steps=(PlannedStep(epoch=1, rows=(0, 1)), PlannedStep(epoch=2, rows=(0, 1))),
        model=folder,
        dataset=folder,
        folder=folder,
        output=folder,
        ray_folder=folder,
        processes=processes,
        peers=peers,
        attempt=1,
        max_images=1,
        resume=resume,
        parent=1,
    )


@pytest.mark.parametrize("cuda", [True, False])
def test_openrlhf_knows_every_flag(cuda: bool) -> None:
    source = Path(str(distribution("openrlhf").locate_file("openrlhf/cli/train_ppo_ray.py"))).read_text()
    flags = [flag.split("=")[0] for flag in arguments(described(RLRecipe(lora=LoRA()), resume=True), cuda=cuda)]
    assert "--ds.lora.rank" in flags
    unknown = [f for f in flags if f'"{f}"' not in source and f'"{f.replace("actor.", "{prefix}.")}"' not in source]
    assert not unknown


def test_the_papers_settings_are_passed_on() -> None:
    flags = set(arguments(described(RLRecipe()), cuda=False))
    assert {
        "--algo.advantage.estimator=reinforce",
        "--rollout.n_samples_per_prompt=1",
        "--actor.loss_agg_mode=seq-mean-token-mean",
        "--algo.kl.init_coef=0.0",
        "--actor.eps_clip=0.2",
        "--train.batch_size=224",
        "--rollout.batch_size=224",
        "--actor.freeze_visual_encoder",
        "--train.num_episodes=2",
    } <= flags


def test_a_run_goes_on_from_a_checkpoint_only_when_there_is_one() -> None:
    assert "--ckpt.load_enable" not in arguments(described(RLRecipe()), cuda=False)
    assert "--ckpt.load_enable" in arguments(described(RLRecipe(), resume=True), cuda=False)


def test_a_reference_model_needs_devices_of_its_own() -> None:
    assert logical_devices(described(RLRecipe(), processes=2)) == 3
    assert logical_devices(described(RLRecipe(kl_coefficient=0.01), processes=2)) == 5


def test_every_pod_has_devices_for_its_own_processes_and_the_leader_one_for_the_engine() -> None:
    leader, other = (described(RLRecipe(kl_coefficient=0.01), processes=4, peers=Peers(rank, 2)) for rank in (0, 1))
    assert (logical_devices(leader), logical_devices(other)) == (5, 4)


def test_every_process_belongs_to_a_pod_and_what_is_alone_to_the_leader() -> None:
    run = described(RLRecipe(), processes=4, peers=Peers(1, 2))
    pods = [next(name for name in bundle if name.startswith("pod-")) for bundle in in_pods(run, [{"GPU": 1.0}] * 4)]
    assert pods == ["pod-0", "pod-0", "pod-1", "pod-1"]
    assert list(in_pods(run, [{"GPU": 1.0}])[0]) == ["GPU", "pod-0"]


def test_a_run_file_reads_back_as_it_was_written() -> None:
    run = described(RLRecipe(seed=7))
    assert RunFile.model_validate_json(run.model_dump_json()) == run

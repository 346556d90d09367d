"""OpenRLHF's command line, made of a run."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.training import LoRA
from egt_pipeline.curriculum import PlannedStep
from egt_pipeline.rl_run import RunFile, arguments, logical_devices


def described(recipe: RLRecipe, *, processes: int = 1, resume: bool = False) -> RunFile:
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


def test_a_run_file_reads_back_as_it_was_written() -> None:
    run = described(RLRecipe(seed=7))
    assert RunFile.model_validate_json(run.model_dump_json()) == run

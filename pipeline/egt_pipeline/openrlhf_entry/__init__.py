"""Stock OpenRLHF 0.11.2, driven from outside: its own command, with some of its classes replaced by subclasses.

    __main__   the driver: starts a private Ray, puts the subclasses in place, runs openrlhf.cli.train_ppo_ray
    actors     the subclasses that are Ray actors, and how all of them get in place
    experience around the rollouts: planned prompts out, filtered advantages back
    training   inside the actor: one optimiser step a batch, pre-clip, the record of what was trained on
    agent      one rollout: forbidden tokens, seeds, reward
    lora       adapters merged on their way to vLLM, and saved
    weights    the vLLM worker's side of the weight sync
    machine    what OpenRLHF needs where CUDA or flash-attn is missing, and processes that die with their parent

Importing this package prepares the process for OpenRLHF, so every Ray worker is prepared by loading a class of it.
Nothing of OpenRLHF is copied or edited. tests/pipeline/test_openrlhf_internals.py names every internal we lean on.
"""

from egt_pipeline.openrlhf_entry.machine import install

install()

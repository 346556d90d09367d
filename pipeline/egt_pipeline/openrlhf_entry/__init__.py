"""Stock OpenRLHF 0.11.2, driven from outside: its own command, with six of its classes replaced by subclasses.

    __main__   the driver: starts a private Ray, puts the subclasses in place, runs openrlhf.cli.train_ppo_ray
    actors     the subclasses: planned order, pre-clip, sigma filter, records written inside the optimiser step
    agent      one rollout: forbidden tokens, seeds, reward
    weights    the vLLM worker's side of the weight sync
    machine    what OpenRLHF needs where CUDA or flash-attn is missing, and processes that die with their parent

Importing this package prepares the process for OpenRLHF, so every Ray worker is prepared by loading a class of it.
Nothing of OpenRLHF is copied or edited. tests/pipeline/test_openrlhf_internals.py names every internal we lean on.
"""

from egt_pipeline.openrlhf_entry.machine import install

install()

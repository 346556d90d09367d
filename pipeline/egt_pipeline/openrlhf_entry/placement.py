"""Ray's placement groups, with each process of the run in the pod it belongs to (``rl_run.in_pods``)."""

from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group

from egt_pipeline.rl_run import current_run, in_pods


def processes_in_pods(bundles: list[dict[str, float]], strategy: str = "PACK", **named: Any) -> PlacementGroup:
    """A placement group with bundle n where process n belongs."""
    return placement_group(in_pods(current_run(), bundles), strategy=strategy, **named)

"""The CEL rules of the CustomResourceDefinition: what the API server refuses before any pod starts. Pure.

The API server tries every default against the rules of its own object *before* it fills in the defaults inside. A rule
that reads a field with a default therefore stands on spec, which has no default itself.
"""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from egt_operator import api, api_parts
from egt_pipeline.contract.base import Placement, Recipe
from egt_pipeline.contract.data import HUB_NAME, NO_HUB_NAME, NO_PLACE, PLACES, DataSource, ModelSource
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import STAGES, StageName, inputs_of
from egt_pipeline.contract.recipes import Keep
from egt_pipeline.contract.tracking import Tracking

Rule = dict[str, Any]


def _rule(cel: str, message: str, field: str | None = None) -> Rule:
    return {"rule": cel, "message": message, **({"fieldPath": field} if field else {})}


_PINNED = _rule(
    "!self.source.startsWith('hf://') || (has(self.revision) && self.revision != '')",
    "revision: a hf:// source needs the commit it is pinned to (40 hex digits)",
)
_PLACED = _rule(
    " || ".join(["!self.source.contains('://')", *(f"self.source.startsWith('{place}')" for place in PLACES)]),
    NO_PLACE,
    ".source",
)
_NAMED = _rule(f"!self.source.startsWith('hf://') || self.source.matches(r'{HUB_NAME}')", NO_HUB_NAME, ".source")

_FROZEN = _rule("self == oldSelf", "cannot change; start a run of another name")

RULES: Mapping[type[BaseModel], tuple[Rule, ...]] = {
    ModelSource: (_PINNED, _PLACED, _NAMED),
    DataSource: (_PINNED, _PLACED, _NAMED),
    Keep: (
        _rule(
            "[has(self.share), has(self.topK), has(self.percentile)].filter(given, given).size() == 1",
            "exactly one of share, topK, percentile is needed",
        ),
        _rule("!has(self.percentile) || self.band == 'low'", "percentile keeps the low end only", ".band"),
    ),
    api.DistillStage: (
        _rule(
            "!self.enabled || has(self.teacher)",
            "teacher: is missing; name {model, baseUrl}, or set distill.enabled: false",
        ),
    ),
    Tracking: (
        _rule("self.service == 'wandb' || self.offline || has(self.address)", "address: is missing; or offline: true"),
        _rule(
            "!self.offline || !has(self.address)", "address: is not accepted with offline: true, which sends nothing"
        ),
    ),
    api_parts.NodeRequirement: (
        _rule(
            "(self.operator in ['In', 'NotIn']) == (self.values.size() > 0)",
            "In and NotIn take at least one value, the other operators none",
            ".values",
        ),
    ),
    api_parts.Toleration: (
        _rule("has(self.key) || self.operator == 'Exists'", "key: is missing; only operator Exists does without one"),
        _rule("!has(self.value) || self.operator != 'Exists'", "value: is not accepted; operator Exists takes none"),
        _rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds: is not accepted; it needs effect NoExecute",
        ),
    ),
    api_parts.StoreSpec: (
        _rule("self.uri.matches('^s3://[^/]')", "in a cluster the store is s3://bucket/prefix", ".uri"),
        _rule("!has(self.caFile)", "caFile: pods do not see files of your machine; use caSecret"),
    ),
}


def spec_rules() -> list[Rule]:
    """What must hold between the stages of a run."""
    return [
        *_graph_rules(),
        *_batch_rules(),
        *_adapter_rules(),
        _rule(
            "!self.evaluate.enabled || self.data.evaluate.size() > 0",
            "data.evaluate: is empty; name a held-out source, or set evaluate.enabled: false",
        ),
        _rule(
            "!self.curate.enabled || !has(self.curate.baseline) || self.curate.baseline != 'accuracy'"
            " || self.probe.generations >= 2",
            "curate.baseline: accuracy needs probe.generations >= 2 (the paper: 8)",
        ),
        _rule(
            "(self.rl.judge.kind == 'endpoint') == has(self.rl.judge.endpoint)",
            "rl.judge.endpoint: given exactly when rl.judge.kind is endpoint",
        ),
    ]


def root_rules() -> list[Rule]:
    """What of a stage may change only until it starts: the status says so, so the rule stands above spec and status."""
    return [_until_started(name) for name in StageName]


def freeze(model: type[BaseModel], schema: dict[str, Any]) -> None:
    """Make immutable whatever in ``schema`` is not marked Placement in ``model``, in as few rules as possible."""
    may_be_absent = []
    for name, field in model.model_fields.items():
        if Placement in field.metadata:
            continue
        key = field.alias or name
        inside = schema["properties"][key]
        if _is_frozen_whole(field.annotation):
            inside.setdefault("x-kubernetes-validations", []).append(_FROZEN)
        else:
            for part in inner_models(field.annotation):
                freeze(part, inside)
        if not field.is_required() and "default" not in inside:
            may_be_absent.append(key)
    if may_be_absent:
        schema.setdefault("x-kubernetes-validations", []).append(_presence_rule(may_be_absent))


def inner_models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic types an annotation mentions: X, X | None, tuple[X, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in inner_models(argument)]


def _is_frozen_whole(annotation: Any) -> bool:
    fields = [field for model in inner_models(annotation) for field in model.model_fields.values()]
    return all(Placement not in field.metadata and _is_frozen_whole(field.annotation) for field in fields)


def _presence_rule(fields: list[str]) -> Rule:
    return _rule(  # _FROZEN sees a field that was there before and after; this sees it come and go
        " && ".join(f"has(self.{name}) == has(oldSelf.{name})" for name in fields),
        f"{', '.join(fields)}: can be neither added nor removed; start a run of another name",
    )


def keys_rule(pattern: str) -> Rule:
    """That every key of a map matches."""
    return _rule(f"self.all(key, key.matches('{pattern}'))", "every key is a label's, as in nvidia.com/gpu.product")


def is_frozen_rule(rule: Rule) -> bool:
    """True for the rule that makes a field immutable."""
    return rule == _FROZEN


def required_stages() -> list[tuple[StageName, StageName]]:
    """(stage, the stage it cannot do without), read off the graph by leaving each one out."""
    pairs = []
    for needed in StageName:
        others = {stage.name: Recipe() for stage in STAGES if stage.name is not needed}
        for name in others:
            try:
                inputs_of(name, others)
            except TaskError:
                pairs.append((name, needed))
    return [(name, needed) for name, needed in pairs if needed is not StageName.PREPARE]


def _graph_rules() -> list[Rule]:
    return [
        _rule(
            f"!self.{name}.enabled || self.{needed}.enabled",
            f"is false, but {name} needs it; enable {needed} or disable {name} too",
            f".{needed}.enabled",
        )
        for name, needed in required_stages()
    ]


def _batch_rules() -> list[Rule]:
    trainings = (StageName.SFT, StageName.RL)
    pods = [
        _rule(f"self.{name}.processes % self.{name}.pods == 0", "does not divide processes", f".{name}.pods")
        for name in trainings
    ]
    gpus = [
        _rule(
            f"!has(self.{name}.resources.gpu) || "
            f"self.{name}.resources.gpu in [0, self.{name}.processes / self.{name}.pods]",
            "must be 0, or as many as a pod has processes; leave it out",
            f".{name}.resources.gpu",
        )
        for name in trainings
    ]
    batches = [
        _rule(
            f"self.{name}.batchSize % (self.{name}.microBatchSize * self.{name}.processes) == 0",
            "is no multiple of microBatchSize x processes",
            f".{name}.batchSize",
        )
        for name in trainings
    ]
    return pods + gpus + batches


def _adapter_rules() -> list[Rule]:
    return [
        _rule(
            f"!has(self.{name}.lora) || self.{name}.freezeVision",
            "false is not accepted with lora, whose adapters are in the language model",
            f".{name}.freezeVision",
        )
        for name in (StageName.SFT, StageName.RL)
    ]


def _until_started(name: StageName) -> Rule:
    block = api.EGTRunSpec.model_fields[name].annotation
    fields = [
        field for field in ("resources", "workers", "processes", "pods") if field in getattr(block, "model_fields", {})
    ]
    same = " && ".join(f"self.spec.{name}.{field} == oldSelf.spec.{name}.{field}" for field in fields)
    return _rule(
        f"({same}) || !has(self.status) || !has(self.status.stages)"  # the cheapest first: every write pays for it
        f" || self.status.stages.all(stage, stage.name != '{name}' || stage.phase == 'Waiting')",
        f"{', '.join(fields)} can change only while the stage waits: set suspend to true, change them, set it to false",
        f".spec.{name}",
    )

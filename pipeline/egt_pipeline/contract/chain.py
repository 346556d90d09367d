"""The chain of a run: every stage's digest and inputs, from the recipes and what prepare read. Pure.

Used by the planner (what should exist), by prepare (what is published already) and by verify (does it still fit).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.graph import STAGE_TYPES, STAGES, Need, StageName, inputs_of
from egt_pipeline.contract.task import InputRef, digest


@dataclass(frozen=True)
class Link:
    """One stage of a run. ``digest`` and ``inputs`` are None as long as prepare has not read the data."""

    stage: StageName
    recipe: Recipe
    digest: str | None
    inputs: Mapping[str, InputRef] | None
    source_fingerprint: str | None = None

    def known_digest(self) -> str:
        """The digest of a stage that is about to start, when it is known by construction."""
        if self.digest is None:
            raise RuntimeError(f"{self.stage} was started before prepare had read the data")
        return self.digest


def chain(
    recipes: Mapping[StageName, Recipe],
    *,
    source_fingerprint: str | None,
    prepared: Mapping[str, str] | None,
    prepared_digest: str | None = None,
) -> dict[StageName, Link]:
    """The links of the enabled stages, in the order of the graph.

    ``source_fingerprint`` tells prepare apart when files changed in place; ``prepared`` is the content of its manifest,
    or None as long as it is not published. Who cannot see the sources gives ``prepared_digest``, as prepare said it.
    Raises TaskError when a stage needs a disabled one.
    """
    links: dict[StageName, Link] = {}
    for stage in (stage for stage in STAGES if stage.name in recipes):
        needs = inputs_of(stage.name, recipes)
        refs = {name: _reference(need, links, prepared) for name, need in needs.items()}
        inputs = {name: ref for name, ref in refs.items() if ref is not None}
        known = len(inputs) == len(needs)
        fingerprint = source_fingerprint if stage.name is StageName.PREPARE else None
        recipe = recipes[stage.name]
        digest_ = link_digest(stage.name, recipe, inputs, fingerprint) if known else None
        if stage.name is StageName.PREPARE and prepared_digest is not None:
            digest_ = prepared_digest
        links[stage.name] = Link(
            stage.name,
            recipe,
            digest_,
            inputs if known else None,
            fingerprint,
        )
    return links


def link_digest(name: StageName, recipe: Recipe, inputs: Mapping[str, InputRef], source_fingerprint: str | None) -> str:
    """The digest of a stage with these inputs; the fingerprint of the sources counts as an input of prepare."""
    identities = {key: ref.identity for key, ref in inputs.items()}
    if source_fingerprint is not None:
        identities["sources"] = source_fingerprint
    return digest(name, STAGE_TYPES[name].revision, recipe, identities)


def _reference(need: Need, links: Mapping[StageName, Link], prepared: Mapping[str, str] | None) -> InputRef | None:
    source = links[need.stage].digest
    if source is None:
        return None
    if need.output is None:
        return InputRef(stage=need.stage, digest=source, identity=source)
    if prepared is None:
        return None
    return InputRef(stage=need.stage, digest=source, output=need.output, identity=prepared[need.output])

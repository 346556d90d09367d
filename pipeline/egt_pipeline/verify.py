"""Does the chain of a run still fit? Every checksum, digest and reference is derived anew from what is in the store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from egt_pipeline.contract.chain import Link, link_digest
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.task import InputRef, Manifest
from egt_pipeline.store import Store

Sources = Mapping[str, Manifest | None]  # of an artifact's inputs; None: no longer published


@dataclass(frozen=True)
class Verified:
    """What was checked of one stage; ``problems`` is empty when all of it fits."""

    stage: StageName
    digest: str | None
    files: int
    size_bytes: int
    problems: tuple[str, ...]
    published: bool = True
    missing: tuple[str, ...] = ()
    """Inputs that are no longer published: what was made of them is as good as before."""


def verify_chain(links: Mapping[StageName, Link], store: Store) -> Iterator[Verified]:
    """One result a stage, in the order of the graph. A stage that is not published is a problem."""
    for link in links.values():
        if link.digest is None:
            yield Verified(link.stage, None, 0, 0, ("not published: prepare has not read the data",), False)
            continue
        try:
            manifest = store.manifest(link.stage, link.digest)
        except ArtifactError as error:
            yield Verified(link.stage, link.digest, 0, 0, (str(error),))
            continue
        if manifest is None:
            yield Verified(link.stage, link.digest, 0, 0, ("not published",), False)
            continue
        sources = {name: store.manifest(ref.stage, ref.digest) for name, ref in manifest.inputs.items()}
        problems = (*_identity_problems(manifest, link, sources), *store.verify(manifest))
        size = sum(entry.size_bytes for entry in manifest.files)
        missing = tuple(_missing(manifest, sources))
        yield Verified(link.stage, link.digest, len(manifest.files), size, problems, missing=missing)


def _identity_problems(manifest: Manifest, link: Link, sources: Sources) -> Iterator[str]:
    stage = STAGE_TYPES[manifest.stage]
    if manifest.stage is not link.stage or manifest.digest != link.digest:
        yield f"manifest.json says it is {manifest.stage}/{manifest.digest}"
    if manifest.revision != stage.revision:
        yield f"made by revision {manifest.revision} of the stage; this is revision {stage.revision}"
        return
    recipe = stage.recipe.model_validate(manifest.recipe)
    derived = link_digest(manifest.stage, recipe, manifest.inputs, manifest.source_fingerprint)
    if derived != manifest.digest:
        yield f"its recipe and inputs give digest {derived}"
    for name, ref in manifest.inputs.items():
        yield from _input_problems(name, ref, sources[name])


def _missing(manifest: Manifest, sources: Sources) -> Iterator[str]:
    for name, ref in manifest.inputs.items():
        # The same content may have been prepared again under another digest; then the identity still decides.
        if ref.output is None and sources[name] is None:
            yield f"input {name}: {ref.stage}/{ref.digest} is not published"


def _input_problems(name: str, ref: InputRef, source: Manifest | None) -> Iterator[str]:
    if source is None:
        return
    identity = source.digest if ref.output is None else source.content.get(ref.output)
    if identity != ref.identity:
        yield f"input {name}: {ref.stage}/{ref.digest} is known as {identity}, not {ref.identity}"

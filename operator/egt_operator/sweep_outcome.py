"""What the runs of a sweep have published so far, gathered for its table and its page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from egt_operator.local import LocalRun
from egt_operator.sweep_file import EGTSweep, SweepTable
from egt_operator.sweep_local import Member
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest

if TYPE_CHECKING:
    from egt_pipeline.store import Store
    from egt_pipeline.sweep_results import ByEntropy, Outcome


def outcome_of(sweep: EGTSweep, members: Sequence[Member], file: Path) -> "Outcome":
    """Everything the page says. Raises TaskError at a column that evaluate has no metric for."""
    from egt_pipeline.sweep_results import Layout, Outcome, Reference, Scored, compare, read_reference

    found = [_manifests(member.local) for member in members]
    scored = [
        Scored(member.entry.arm, member.entry.seed, made.digest, made.metrics)
        for member, manifests in zip(members, found, strict=True)
        if (made := manifests.get(StageName.EVALUATE)) is not None
    ]
    reference = read_reference(file.parent / sweep.reference) if sweep.reference else Reference("", {})
    # Without tables of its own a sweep has one of all arms.
    tables = sweep.tables or (SweepTable(name=sweep.metadata.name, rows={arm: arm for arm in sweep.arms}),)
    return Outcome(
        name=sweep.metadata.name,
        base=sweep.base,
        varied=sweep.seeds.fields,
        seeds=sweep.seeds.values,
        runs=len(members),
        scored=scored,
        comparisons=[compare(Layout(t.name, t.title, t.x, t.rows), sweep.columns, scored, reference) for t in tables],
        by_entropy=list(_by_entropy(members, found)),
        source=reference.source,
    )


def _manifests(local: LocalRun) -> dict[StageName, Manifest]:
    return {task.stage: manifest for task, manifest in local.chain()[1].items()}


def _by_entropy(members: Sequence[Member], found: Sequence[dict[StageName, Manifest]]) -> "Iterator[ByEntropy]":
    """One entry for each probe by greedy generation, which is the paper's."""
    from egt_pipeline.store import open_store
    from egt_pipeline.sweep_results import ByEntropy, accuracy_by_entropy

    seen = set()
    for member, manifests in zip(members, found, strict=True):
        probe, prepare = manifests.get(StageName.PROBE), manifests.get(StageName.PREPARE)
        if probe is None or prepare is None or probe.digest in seen or probe.recipe["generations"] != 1:
            continue
        seen.add(probe.digest)
        store, cache = open_store(member.local.store), member.local.state / "cache"
        entropies = _fetch(store, probe, "entropies.parquet", cache)
        yield ByEntropy(
            probe.digest, accuracy_by_entropy(entropies, _fetch(store, prepare, "rl/preferences.parquet", cache))
        )


def _fetch(store: "Store", manifest: Manifest, file: str, cache: Path) -> Path:
    """One file of an artifact: prepare's pictures may have gigabytes, and nobody looks at them here."""
    wanted = tuple(entry for entry in manifest.files if entry.path == file)
    if not wanted:
        raise ArtifactError(f"{manifest.stage}/{manifest.digest}: its manifest names no {file}")
    return store.fetch(manifest.model_copy(update={"files": wanted}), cache) / file

"""Which samples are trained on, and in which order (EGT section 2.3): arrays in, positions out. No label is an input.

    samples ──► scores ──► amount ──► cut ─────────────► in_order ──────────► curriculum
                                      who may be kept     (score, sentence     positions of the kept samples,
                                      by score alone       entropy, id)        easiest first

``cut`` needs the scores only. Sentence entropies and ids are looked at for its candidates, never for the whole table,
so ten million samples need little more memory than their scores.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import Keep

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]
_PIECE = 1 << 18  # scores looked at together: 2 MB
Score = Literal["answer", "sentence", "mix"]


@dataclass(frozen=True)
class Cut:
    """Samples of one group that may be kept.

    ``candidates`` are positions, ascending; in the total order, ``skip`` of them come before the ``take`` kept ones.
    More candidates than ``take`` exist only where scores tie with the lowest or the highest kept one.
    """

    candidates: Positions
    skip: int
    take: int


def entropy_score(answer_N: Floats, sentence_N: Floats, score: Score) -> Floats:
    """What samples are ranked by, in nats (nats squared for mix): the paper's Table 4."""
    match score:
        case "answer":
            return answer_N
        case "sentence":
            return sentence_N
        case "mix":
            return answer_N * sentence_N


def random_scores(ids: Sequence[str], seed: int) -> Floats:
    """Uniform numbers in [0, 1) that depend on the seed and the sample's own id, so not on the order of the rows."""
    key = seed.to_bytes(8, "little")
    hashes = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in ids)
    bits = np.frombuffer(b"".join(hashes), dtype="<u8")
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # the 53 bits a float64 holds exactly


def amount(keep: Keep, score_N: Floats) -> tuple[int, float | None]:
    """How many samples are kept, and for a percentile the score they lie below; NaN is the score of what has none.

    Raises TaskError when topK asks for more samples than can be ranked, or when nothing would be kept.
    """
    count = int(np.count_nonzero(score_N >= 0))
    if keep.top_k is not None:
        if keep.top_k > count:
            raise TaskError(f"keep.topK: {keep.top_k} samples are asked for, but only {count} can be ranked")
        return keep.top_k, None
    if keep.share is not None:
        # As a decimal, not as its float64: 0.29 of 100 are 29 samples, though 0.29 * 100 = 28.999..
        kept = int(Fraction(str(keep.share)) * count)
        if kept == 0:
            raise TaskError(f"keep.share: {keep.share} of {count} samples that can be ranked leaves none")
        return kept, None
    if count == 0:
        raise TaskError("keep.percentile: none of the samples can be ranked")
    threshold = percentile(score_N, count, keep.percentile or 0.0)
    kept = int(np.count_nonzero(score_N < threshold))
    if kept == 0:
        raise TaskError(f"keep.percentile: no score lies strictly below percentile {keep.percentile}, {threshold}")
    return kept, threshold


def percentile(score_N: Floats, count: int, percent: float) -> float:
    """The percentile of the ``count`` scores that are numbers, linearly interpolated (numpy's and pandas' default)."""
    place = percent / 100 * (count - 1)
    below = int(place)
    above = min(below + 1, count - 1)
    everything = np.ones(len(score_N), bool)
    return float(np.interp(place, (below, above), [nth(score_N, everything, rank) for rank in (below, above)]))


def nth(score_N: Floats, member_N: Mask, rank: int) -> float:
    """The score at ``rank`` (from 0) among the members; scores are 0 or more, and NaN ranks last.

    The bits of such numbers, read as integers, are in the numbers' own order: a histogram of the first 16 finds the few
    that are worth sorting, so no copy of all scores is made.
    """
    pieces = [slice(start, start + _PIECE) for start in range(0, len(score_N), _PIECE)]
    keys = (_first_bits(score_N[piece][member_N[piece]]) for piece in pieces)
    below = np.cumsum(sum((np.bincount(key, minlength=1 << 16) for key in keys), np.zeros(1 << 16, np.int64)))
    key = int(np.searchsorted(below, rank, side="right"))
    few = [score_N[piece][member_N[piece] & (_first_bits(score_N[piece]) == key)] for piece in pieces]
    inside = rank - int(below[key - 1]) if key else rank
    return float(np.partition(np.concatenate(few), inside)[inside])


def _first_bits(score_N: Floats) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(score_N + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0: equal numbers have equal bits
    return (bits >> np.uint64(48)).astype(np.uint16)


def tie_share(score_N: Floats) -> float:
    """The share of samples whose score another sample has too; 0 for none or one sample."""
    ordered = np.sort(score_N)
    same = np.zeros(len(ordered) + 1, bool)
    same[1:-1] = _equal_to_next(ordered)
    return float((same[1:] | same[:-1]).mean()) if len(ordered) else 0.0


def quotas(sizes: Sequence[int], kept: int) -> list[int]:
    """How many of ``kept`` samples each group gives when groups take turns, and those that are used up drop out.

    Equal to the group counts among the first ``kept`` samples of the interleaved order.
    """
    given = [0] * len(sizes)
    left = kept
    while left:
        open_groups = [g for g, size in enumerate(sizes) if given[g] < size]
        room = min(sizes[g] - given[g] for g in open_groups)
        turns = min(room, left // len(open_groups))
        for place, group in enumerate(open_groups):
            given[group] += turns or int(place < left)
        left = kept - sum(given)
    return given


def band_start(size: int, take: int, band: Literal["low", "mid", "high"]) -> int:
    """The first rank of a band of ``take`` samples out of ``size``: from 0, around the median, or up to the last."""
    return {"low": 0, "mid": (size - take) // 2, "high": size - take}[band]


def cut(score_N: Floats, member_N: Mask, start: int, take: int) -> Cut:
    """The candidates for the ranks ``start`` .. ``start + take`` among the members."""
    if take == 0:
        return Cut(np.empty(0, np.int64), 0, 0)
    lowest, highest = nth(score_N, member_N, start), nth(score_N, member_N, start + take - 1)
    before = int(np.count_nonzero(member_N & (score_N < lowest)))
    return Cut(np.flatnonzero(member_N & (score_N >= lowest) & (score_N <= highest)), start - before, take)


def cuts(
    score_N: Floats,
    members: Sequence[Mask],
    keep: Keep,
    kept: int,
    threshold: float | None,
) -> list[Cut]:
    """One cut for each group in ``members``.

    With a percentile a group gives what lies below ``threshold``; else the groups take turns up to ``kept``.
    Bands are taken inside each group, so a balanced high band is balanced too.
    """
    sizes = [int(np.count_nonzero(member)) for member in members]
    if threshold is None:
        takes = quotas(sizes, kept)
    else:
        takes = [int(np.count_nonzero(score_N[member] < threshold)) for member in members]
    return [
        cut(score_N, member, band_start(size, take, keep.band), take)
        for member, size, take in zip(members, sizes, takes, strict=True)
    ]


def in_order(score_N: Floats, sentence_N: Floats, ids: Callable[[Positions], pa.StringArray]) -> Positions:
    """The positions 0 .. N-1 sorted by (score, sentence entropy, sample id).

    ``ids`` gives the ids at some positions, and is asked only where both numbers tie; ids compare as UTF-8 bytes.
    """
    order: Positions = np.lexsort((sentence_N, score_N))
    same = np.zeros(len(order) + 1, bool)  # same[i]: sample i of the order ties with the one before it in both
    same[1:-1] = _equal_to_next(score_N[order]) & _equal_to_next(sentence_N[order])
    places = np.flatnonzero(same[:-1] | same[1:])
    if len(places):
        runs = np.cumsum(~same[:-1])[places]
        tied = order[places]
        table = pa.Table.from_arrays([as_arrow(runs), ids(tied)], ["run", "id"])
        by_id = pc.sort_indices(table, sort_keys=[("run", "ascending"), ("id", "ascending")])
        order[places] = tied[np.from_dlpack(by_id)]
    return order


def _equal_to_next(values_N: Floats) -> Mask:
    return np.equal(values_N[1:], values_N[:-1])


def interleave(groups: Sequence[Positions]) -> Positions:
    """Rank 1 of the first group, rank 1 of the second, rank 2 of the first, ..., then the rest of a longer one."""
    if len(groups) == 1:
        return groups[0]
    rank = np.concatenate([np.arange(len(group)) for group in groups])
    return np.concatenate(groups)[np.argsort(rank, kind="stable")]


def curriculum(
    found: Sequence[Cut],
    score_N: Floats,
    sentence: Callable[[Positions], Floats],
    ids: Callable[[Positions], pa.StringArray],
) -> Positions:
    """The positions of the kept samples, easiest first.

    ``sentence`` and ``ids`` give what belongs to the samples at some positions.
    """
    groups = []
    for one in found:
        names = partial(_ids_of, ids, one.candidates)
        order = in_order(score_N[one.candidates], sentence(one.candidates), names)
        groups.append(one.candidates[order[one.skip : one.skip + one.take]])
    return interleave(groups)


def _ids_of(ids: Callable[[Positions], pa.StringArray], candidates: Positions, members: Positions) -> pa.StringArray:
    return ids(candidates[members])


def as_arrow(values_N: NDArray[np.generic], valid_N: Mask | None = None) -> pa.Array:
    """A numpy array as an Arrow array, not copied; null where ``valid_N`` is False."""
    # pa.array(), pa.scalar() and Array.to_numpy() would import pandas first: up to a second, and 45 MB.
    nulls = None if valid_N is None else pa.py_buffer(np.packbits(valid_N, bitorder="little"))
    values = pa.py_buffer(np.ascontiguousarray(values_N))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values_N.dtype), len(values_N), [nulls, values])

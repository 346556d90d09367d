"""A row of any source becomes a row of the normal form, with a status and a reason; nothing is lost."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

from egt_pipeline.contract.data import DataSource
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.pictures import picture_problem
from egt_pipeline.preferences import PREFERENCES, STATUS_OK
from egt_pipeline.sources import local_path

_REQUIRED = ("sample_id", "images", "question", "answer_1", "answer_2", "label")
_TEXTS = ("sample_id", "question", "answer_1", "answer_2", "subset", "group", "response")
_OPTIONAL = ("strength", "subset", "group", "response")
_LONGEST_TEXT = 1_000_000  # characters; more is a file that went into the wrong column
_LONGEST_ID = 512


class BadRowError(Exception):
    """Why a row cannot be used: a status for tables and a reason for people."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Normaliser:
    """Normalises the rows of one source; remembers ids and pictures, so that each is taken once."""

    def __init__(self, source: DataSource, max_image_pixels: int, *, needs_response: bool) -> None:
        self._source = source
        self._max_image_pixels = max_image_pixels
        self._needs_response = needs_response
        self._folder = local_path(source.source).parent.resolve()
        self._ids: set[str] = set()
        self._pictures: dict[str, str | None] = {}  # image id -> problem

    def row(self, number: int, raw: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
        """The row in normal form, and those of its pictures that were not seen before.

        Raises TaskError when the source has no such columns at all.
        """
        row: dict[str, Any] = dict.fromkeys(PREFERENCES.names)
        row |= {"row": number, "images": [], "source": self._source.name, "answer_order": "12"}
        row |= {"status": STATUS_OK, "reason": ""}
        new: list[tuple[str, bytes]] = []
        try:
            if "__error__" in raw:
                raise BadRowError("unreadable", str(raw["__error__"]))
            values = self._values(number, raw)
            row |= {name: _text(name, values[name]) for name in _TEXTS}
            self._check_texts(row)
            row["label"] = _label(values["label"])
            row["strength"] = _strength(values["strength"])
            row["images"] = list(self._images(values["images"], new))
            self._ids.add(row["sample_id"])  # only now: a bad row must not stand in the way of a good one
        except BadRowError as bad:
            row |= {"status": bad.status, "reason": str(bad)}
        return row, new

    def _values(self, number: int, raw: dict[str, Any]) -> dict[str, Any]:
        columns = self._source.columns
        missing = [getattr(columns, name) for name in _REQUIRED if getattr(columns, name) not in raw]
        if missing and number == 0:
            raise TaskError(
                f"source: {self._source.source}: no column {', '.join(missing)}; it has {', '.join(sorted(raw))}. "
                f"Name the right ones in its `columns`"
            )
        if missing:
            raise BadRowError("missing_column", f"no {', '.join(missing)}")
        return {name: raw.get(getattr(columns, name)) for name in (*_REQUIRED, *_OPTIONAL)}

    def _check_texts(self, row: dict[str, Any]) -> None:
        sample_id = row["sample_id"]
        if not sample_id or len(sample_id) > _LONGEST_ID or not sample_id.isprintable():
            raise BadRowError(
                "bad_id", f"sample id {str(sample_id)[:40]!r}: empty, too long, or with control characters"
            )
        if sample_id in self._ids:
            raise BadRowError("duplicate_id", f"sample id {sample_id!r} came before; the first one is used")
        for name in ("question", "answer_1", "answer_2"):
            if not (row[name] or "").strip():
                raise BadRowError("empty_text", f"{name} is empty")
            if len(row[name]) > _LONGEST_TEXT:
                raise BadRowError("too_long", f"{name} has {len(row[name])} characters, more than {_LONGEST_TEXT}")
        if row["answer_1"].strip() == row["answer_2"].strip():
            raise BadRowError("equal_answers", "both answers are the same text")
        if self._needs_response and not (row["response"] or "").strip():
            raise BadRowError("no_response", "distill is disabled and the row brings no response")

    def _images(self, value: Any, new: list[tuple[str, bytes]]) -> Iterator[str]:
        references = value if isinstance(value, list) else [value]
        if not references:
            raise BadRowError("bad_image", "the row has no image")
        for reference in references:
            data = self._bytes(reference)
            image_id = hashlib.sha256(data).hexdigest()
            if image_id not in self._pictures:
                problem = picture_problem(data, max_pixels=self._max_image_pixels)
                self._pictures[image_id] = problem
                if problem is None:
                    new.append((image_id, data))
            problem = self._pictures[image_id]
            if problem is not None:
                raise BadRowError("bad_image", f"{_name_of(reference)}: {problem}")
            yield image_id

    def _bytes(self, reference: Any) -> bytes:
        if isinstance(reference, dict):  # as Hugging Face writes pictures: {"bytes": .., "path": ..}
            reference = reference.get("bytes") or reference.get("path")
        if isinstance(reference, bytes):
            return reference
        if not isinstance(reference, str) or not reference:
            raise BadRowError("bad_image", f"image {reference!r} is neither a path nor bytes")
        try:
            path = (self._folder / local_path(reference)).resolve()
            if not path.is_relative_to(self._folder):
                raise BadRowError("bad_image", f"{reference}: leads out of the source's folder")
            return path.read_bytes()
        except (ValueError, RuntimeError):  # a zero byte in the name, a circle of links
            raise BadRowError("bad_image", f"{reference!r} is no path") from None
        except OSError as error:
            raise BadRowError("missing_image", f"{reference}: {error.strerror}") from None


def _name_of(reference: Any) -> str:
    return reference if isinstance(reference, str) else "image"


def _text(name: str, value: Any) -> str | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise BadRowError("bad_text", f"{name} is a {type(value).__name__}, not a text")
    # JSON may hold half of a surrogate pair, which no file can: it becomes a question mark.
    return None if value is None else str(value).encode(errors="replace").decode()


def _label(value: Any) -> int:
    """1 or 2, also as text; a boolean is refused, since nobody can tell whether True means first or better."""
    if not isinstance(value, bool) and str(value).strip() in ("1", "2", "1.0", "2.0"):
        return int(float(value))
    raise BadRowError("bad_label", f"label {value!r} is neither 1 nor 2")


def _strength(value: Any) -> float | None:
    if value is None:
        return None
    try:
        strength = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRowError("bad_strength", f"strength {value!r} is no number") from None
    if not math.isfinite(strength):
        raise BadRowError("bad_strength", f"strength {value!r} is not finite")
    return strength

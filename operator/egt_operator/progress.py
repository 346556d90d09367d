"""The progress of a stage, as it says it in its log. Pure."""

from pydantic import ValidationError

from egt_pipeline.contract.task import PROGRESS_MARK, Progress


def last_progress(log: str) -> Progress | None:
    """The last progress in the end of a log; None if there is none, or only a part of it."""
    for line in reversed(log.splitlines()):
        if line.startswith(PROGRESS_MARK):
            try:
                return Progress.model_validate_json(line.removeprefix(PROGRESS_MARK))
            except ValidationError:
                continue
    return None

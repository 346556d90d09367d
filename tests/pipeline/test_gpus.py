"""What is said of GPUs that are missing, and of those that are full."""

import pytest
import torch

from egt_pipeline.contract.errors import EgtError
from egt_pipeline.gpus import check_gpus, no_room

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.50 GiB. "
    "Including non-PyTorch memory, this process has 22.00 GiB memory in use."
)


def test_a_full_gpu_is_an_error_of_the_task_that_names_what_was_asked_and_what_helps() -> None:
    error = no_room("sft", torch.OutOfMemoryError(FULL))
    assert error is not None
    assert str(error) == (
        "sft: a GPU has no room: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
        "total capacity of 23.50 GiB; lower sft.microBatchSize or "
        "sft.maxLength, or take larger GPUs: egt plan says what fits"
    )


def test_one_that_ray_has_wrapped_is_found() -> None:
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("train", "Traceback ..", torch.OutOfMemoryError(FULL))
    assert no_room("rl", wrapped.as_instanceof_cause()) is not None


@pytest.mark.parametrize("error", [RuntimeError("shape"), MemoryError()])
def test_any_other_error_is_none_of_ours(error: Exception) -> None:
    assert no_room("sft", error) is None


def test_gpus_that_were_promised_and_are_not_seen_end_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EgtError, match="4 GPUs were promised and 3 can be used"):
        check_gpus(4)
    check_gpus(3)


def test_gpus_whose_driver_is_too_old_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EgtError, match="3 GPUs were promised and 0 can be used"):
        check_gpus(3)


def test_where_none_are_promised_none_are_looked_for() -> None:
    check_gpus(0)

"""What must hold holds in all histories, whatever goes wrong in them."""

import asyncio
from datetime import timedelta

import pytest

from build_egtrun import SETTINGS
from fake_history import History


@pytest.mark.parametrize("failures", [False, True], ids=["smooth", "failures"])
@pytest.mark.parametrize("seed", range(60))
def test_whatever_goes_wrong_around_it_a_run_completes_with_every_stage_done_once(seed: int, failures: bool) -> None:
    history = History(seed, failures=failures)
    asyncio.run(history.play())
    history.check()


def test_a_run_that_nothing_goes_wrong_around_is_done_without_a_resync() -> None:
    history = History(0, failures=False)
    history.cluster.before = history.cluster.after = lambda _call: None
    history.hear = lambda kind, body, gone: history.controller.heard(kind, body, gone=gone)  # type: ignore[method-assign]
    began = history.cluster.now
    asyncio.run(history.play())
    assert history.cluster.now - began < timedelta(seconds=SETTINGS.resync_seconds)

"""What a run's conditions say, and that they say it once."""

import pytest

from build_egtrun import cluster_with, condition, drive, egtrun, failing, status_of
from fake_stages import Ending


@pytest.mark.parametrize("attempts", [0, 99], ids=["Complete", "Failed"])
def test_a_run_that_has_ended_is_finished_and_says_why_once(attempts: int) -> None:
    cluster = cluster_with(script=failing("sft", Ending(exit_code=64), attempts))
    drive(cluster)
    assert condition(cluster, "Finished")["status"] == "True"
    said = [found["message"] for found in status_of(cluster)["conditions"] if found["type"] != "Accepted"]
    assert sum(bool(message) for message in said) == 1


def test_a_run_that_waits_is_not_finished_and_says_what_for_once() -> None:
    cluster = cluster_with(egtrun(scheduling={"queue": "nosuch"}))
    drive(cluster, until=lambda c: bool(status_of(c)))
    assert condition(cluster, "Finished")["status"] == "False"
    said = [found["message"] for found in status_of(cluster)["conditions"]]
    assert [bool(message) for message in said] == [True, False, False, False, False, False]

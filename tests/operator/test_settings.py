"""What the operator is told by variables, and the words for what it cannot take."""

import pytest

from egt_operator.settings import Settings
from egt_pipeline.contract.errors import TaskError


def test_lists_are_json_and_the_rest_is_as_it_stands() -> None:
    found = Settings.from_environment(
        {"EGT_IMAGE": "egt", "EGT_NAMESPACES": '["a", "b"]', "EGT_WORKERS": "3", "HOME": "/"}
    )
    assert (found.image, found.namespaces, found.workers) == ("egt", ("a", "b"), 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"EGT_WORKERS": "-1"}, "EGT_WORKERS: '-1' is not accepted; it should be greater than or equal to 1"),
        ({"EGT_NAMESPACES": "[a"}, "EGT_NAMESPACES: '[a' is not accepted; it is a list in JSON, as in"),
        ({"EGT_NAMESPACES": "default"}, "EGT_NAMESPACES: 'default' is not accepted; it is a list in JSON, as in"),
        ({"EGT_SCRATCH_SIZE": "foo"}, "EGT_SCRATCH_SIZE: 'foo' is not accepted; it should match pattern"),
    ],
)
def test_a_variable_is_refused_by_its_name_and_value(given: dict[str, str], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        Settings.from_environment({"EGT_IMAGE": "egt", **given})
    assert said in str(caught.value)


def test_an_operator_without_an_image_for_its_stages_says_which_variable_is_missing() -> None:
    with pytest.raises(TaskError, match=r"^EGT_IMAGE: is missing"):
        Settings.from_environment({})

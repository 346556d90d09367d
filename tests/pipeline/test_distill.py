"""distill: three label-free attempts, errors of the network are none, nothing is asked twice."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from build_context import make_context
from build_source import recipe_of, row, write_source
from chat_server import Answer, ChatServer, chat_server
from egt_pipeline.chat import api_key
from egt_pipeline.context import StageResult
from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.errors import StoppedError, TaskError, UnavailableError
from egt_pipeline.contract.recipes import DistillRecipe
from egt_pipeline.preferences import read_preferences
from egt_pipeline.stages import distill, prepare

COUNT = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared artifact whose sft data have six good rows and a bad one."""
    rows = [*(row(number) for number in range(COUNT)), row(COUNT, label=9)]
    recipe = recipe_of(tmp_path, write_source(tmp_path / "rl", [row(0), row(1)]))
    sft = {"source": str(write_source(tmp_path / "sft", [*rows])), "answerOrder": "given"}
    data = recipe.data.model_copy(update={"sft": type(recipe.data.sft).model_validate(sft)})
    out = tmp_path / "prepared"
    out.mkdir()
    prepare.run(recipe.model_copy(update={"data": data}), {}, out, make_context(tmp_path))
    return out


def label_of(request: dict[str, Any]) -> int:
    """The label that `row` gave this request's preference, by its number in the prompt."""
    text = request["messages"][0]["content"][-1]["text"]
    return 1 + int(text.split("first ")[1].split()[0]) % 2


def says(answer: int | str) -> str:
    return f"<think>a look</think>\n<answer>{answer}</answer>"


def distilled(
    data: Path, tmp_path: Path, server: ChatServer, *, fields: dict[str, Any] | None = None, **context: Any
) -> tuple[StageResult, list[dict[str, Any]]]:
    teacher = {"model": "m", "baseUrl": server.base_url, "concurrency": 4}
    recipe = DistillRecipe.model_validate({"teacher": teacher, "prompt": "plain-v1", **(fields or {})})
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    result = distill.run(recipe, {"data": data}, out, make_context(tmp_path, **context))
    return result, pq.read_table(out / "trajectories.parquet").to_pylist()


Script = Callable[[dict[str, Any], int], Answer]


def test_a_right_answer_is_kept_at_the_first_attempt_in_normal_form(data: Path, tmp_path: Path) -> None:
    with chat_server(lambda request, _: Answer(says(label_of(request)))) as server:
        result, rows = distilled(data, tmp_path, server)
    assert [found["status"] for found in rows] == ["kept"] * COUNT + ["skipped"]
    assert {found["attempts"] for found in rows[:COUNT]} == {1}
    assert rows[0]["response"] == "<think>a look</think><answer>1</answer>"
    assert (rows[0]["tokens_in"], rows[0]["tokens_out"]) == (7, 3)
    assert "bad_label" in rows[COUNT]["reason"]
    assert sum(int(result.metrics.get(status) or 0) for status in ("kept", "skipped")) == COUNT + 1


def test_every_row_comes_out_once_and_in_order(data: Path, tmp_path: Path) -> None:
    with chat_server(lambda _, number: Answer(says(1 + number % 2))) as server:
        _, rows = distilled(data, tmp_path, server)
    assert [found["row"] for found in rows] == list(range(COUNT + 1))


def test_the_label_is_in_no_request(data: Path, tmp_path: Path) -> None:
    with chat_server(lambda request, _: Answer(says(label_of(request)))) as server:
        distilled(data, tmp_path, server)
    for request in server.requests:
        assert set(request) == {"model", "messages", "temperature", "max_tokens", "seed"}
        content = request["messages"][0]["content"]
        assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
        number = int(content[-1]["text"].split("first ")[1].split()[0])
        assert content[-1]["text"] == f"Which digit is this? Response 1: first {number} Response 2: second {number}"


@pytest.mark.parametrize(
    "bad", ["", "no tags", says(3), says("1</answer><answer>2"), "<answer>1</answer>", "</think><answer>1</answer>"]
)
def test_a_malformed_answer_is_a_failed_attempt(data: Path, tmp_path: Path, bad: str) -> None:
    with chat_server(lambda *_: Answer(bad)) as server, pytest.raises(TaskError, match="kept none of 7 rows"):
        distilled(data, tmp_path, server)
    assert len(server.requests) == 3 * COUNT


def test_a_second_attempt_that_is_right_is_kept_and_counted(data: Path, tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def script(request: dict[str, Any], _: int) -> Answer:
        text = request["messages"][0]["content"][-1]["text"]
        asked[text] += 1
        return Answer(says(label_of(request) if asked[text] == 2 else 3 - label_of(request)))

    with chat_server(script) as server:
        _, rows = distilled(data, tmp_path, server, fields={"temperatures": [0.0, 0.7]})
    assert {found["attempts"] for found in rows[:COUNT]} == {2}
    assert sorted({request["temperature"] for request in server.requests}) == [0.0, 0.7]


def test_rows_that_are_never_right_are_exhausted_not_lost(data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any], _: int) -> Answer:
        return Answer(says(1))

    with chat_server(script) as server:
        _, rows = distilled(data, tmp_path, server)
    statuses = Counter(found["status"] for found in rows)
    assert statuses == {"kept": 3, "exhausted": 3, "skipped": 1}
    assert {found["attempts"] for found in rows if found["status"] == "exhausted"} == {3}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_of_the_service_is_retried_and_is_no_attempt(data: Path, tmp_path: Path, status: int) -> None:
    def script(request: dict[str, Any], number: int) -> Answer:
        if number % 2 == 0:
            return Answer(status=status, body=b"{}", headers={"Retry-After": "0.01"})
        return Answer(says(label_of(request)))

    with chat_server(script) as server:
        _, rows = distilled(data, tmp_path, server, fields={"attempts": 1})
    assert [found["status"] for found in rows] == ["kept"] * COUNT + ["skipped"]


def test_a_teacher_that_never_answers_stops_the_stage_with_a_code_for_later(data: Path, tmp_path: Path) -> None:
    busy = Answer(status=429, body=b"{}", headers={"Retry-After": "0.001"})
    with (
        chat_server(lambda *_: busy) as server,
        pytest.raises(UnavailableError, match="did not answer for 6 of 6 rows"),
    ):
        distilled(data, tmp_path, server)


def test_a_teacher_that_is_not_there_is_said_at_once(data: Path, tmp_path: Path) -> None:
    with chat_server(lambda *_: Answer("")) as server:
        pass
    with pytest.raises(UnavailableError, match="Is the service running"):
        distilled(data, tmp_path, server)


def test_a_few_rows_without_an_answer_are_unavailable_and_the_rest_goes_on(data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any], _: int) -> Answer:
        if "first 3 " in request["messages"][0]["content"][-1]["text"]:
            return Answer(status=500, body=b"{}", headers={"Retry-After": "0.001"})
        return Answer(says(label_of(request)))

    with chat_server(script) as server:
        _, rows = distilled(data, tmp_path, server, fields={"maxFailedShare": 0.5})
    assert rows[3]["status"] == "unavailable"
    assert Counter(found["status"] for found in rows)["kept"] == COUNT - 1


@pytest.mark.parametrize("body", [b"not json", b'{"choices": []}', b"[]"])
def test_nonsense_instead_of_a_completion_ends_in_an_error_with_a_name(data: Path, tmp_path: Path, body: bytes) -> None:
    with chat_server(lambda *_: Answer(body=body)) as server, pytest.raises((TaskError, UnavailableError)):
        distilled(data, tmp_path, server)


def test_a_refused_key_is_no_reason_to_try_again(data: Path, tmp_path: Path) -> None:
    with chat_server(lambda *_: Answer(status=401, body=b"{}")) as server, pytest.raises(TaskError, match="refuses"):
        distilled(data, tmp_path, server)


def test_a_missing_key_for_a_distant_service_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(TaskError, match="SOME_KEY"):
        api_key(Endpoint(model="m", base_url="https://teacher.example/v1", api_key_env="SOME_KEY"))


def test_a_stopped_run_asks_nothing_twice(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "_CHUNK_ROWS", 2)
    with chat_server(lambda request, _: Answer(says(label_of(request)))) as server:
        with pytest.raises(StoppedError):
            distilled(data, tmp_path, server, stopping=lambda: len(server.requests) >= 4)
        assert len(server.requests) == 4
        _, rows = distilled(data, tmp_path, server)
    assert len(server.requests) == COUNT
    assert Counter(found["status"] for found in rows) == {"kept": COUNT, "skipped": 1}


def test_the_order_of_answers_does_not_change_the_table(data: Path, tmp_path: Path) -> None:
    tables = []
    for number, concurrency in enumerate((1, 8)):
        place = tmp_path / str(number)
        place.mkdir()
        with chat_server(lambda request, _: Answer(says(label_of(request)))) as server:
            fields = {"teacher": {"model": "m", "baseUrl": server.base_url, "concurrency": concurrency}}
            distilled(data, place, server, fields=fields)
        tables.append((place / "out" / "trajectories.parquet").read_bytes())
    assert tables[0] == tables[1]


def test_the_rows_it_reads_are_those_prepare_found_usable(data: Path) -> None:
    assert len(read_preferences(data / "sft", labelled=True)) == COUNT

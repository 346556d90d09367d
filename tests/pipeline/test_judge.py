"""The judge behind an OpenAI-compatible endpoint, against a real HTTP server that answers as it is told."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import LogicJudge
from egt_pipeline.judge import EndpointJudge, Judgement, judge_for


@dataclass
class Service:
    """Answers with ``replies`` in turn, the last one repeated: a text, or an HTTP status."""

    replies: list[str | int]
    seconds: float = 0.0
    questions: list[str] = field(default_factory=list)
    url: str = ""
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, question: str) -> str | int:
        with self.lock:
            self.questions.append(question)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            reply = self.replies[min(len(self.questions), len(self.replies)) - 1]
        time.sleep(self.seconds)
        with self.lock:
            self.under_way -= 1
        return reply


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert isinstance(asked["messages"][0]["content"], str), "the judge sees text only"
            reply = service.reply(asked["messages"][0]["content"])
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
            data = json.dumps(body if isinstance(reply, str) else {"error": {"message": "told to fail"}}).encode()
            self.send_response(reply if isinstance(reply, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")


def asked(service: Service, *questions: tuple[str, int], timeout: float = 5.0, concurrency: int = 4) -> list[Judgement]:
    async def ask_all() -> list[Judgement]:
        judge = EndpointJudge(
            Endpoint(
                model="judge",
                base_url=service.url,
                api_key_env="JUDGE_KEY",
                timeout_seconds=timeout,
            ),
            at_once=concurrency,
        )
        return list(await asyncio.gather(*(judge(reasoning, answer) for reasoning, answer in questions)))  # type: ignore[arg-type]

    return asyncio.run(ask_all())


@pytest.mark.parametrize(("said", "expected"), [("1", 1), (" 0\n", -1)])
def test_one_digit_is_a_judgement(said: str, expected: int) -> None:
    with serving(Service([said])) as service:
        assert asked(service, ("Response 1 is better.", 1)) == [Judgement(expected)]  # type: ignore[arg-type]


def test_the_judge_is_shown_the_last_lines_and_the_verdict_and_nothing_else() -> None:
    with serving(Service(["1"])) as service:
        asked(service, ("line one\nline two\nline three\nline four", 2))
    assert "line one" not in service.questions[0]
    assert "line two\nline three\nline four" in service.questions[0]
    assert "Response 2 is better" in service.questions[0]


@pytest.mark.parametrize("said", ["", "yes", "10", "The answer is 1."])
def test_anything_but_a_digit_counts_zero_and_as_a_failure(said: str) -> None:
    with serving(Service([said])) as service:
        assert asked(service, ("r", 1)) == [Judgement(0, failed=True)]


def test_a_service_that_refuses_is_asked_again_and_then_counted_as_failed() -> None:
    with serving(Service([400])) as service:
        assert asked(service, ("r", 1)) == [Judgement(0, failed=True)]
    with serving(Service([503, "1"])) as service:
        assert asked(service, ("r", 1)) == [Judgement(1)]
        assert len(service.questions) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_key_or_a_model_that_is_refused_ends_the_run(status: int) -> None:
    with serving(Service([status])) as service, pytest.raises(TaskError, match=r"rl.judge.endpoint: .* 'judge'"):
        asked(service, ("r", 1))


def test_one_that_has_answered_and_is_not_found_for_a_while_counts_as_failed() -> None:
    async def twice(url: str) -> list[Judgement]:
        judge = EndpointJudge(Endpoint(model="judge", base_url=url, api_key_env="JUDGE_KEY"), at_once=1)
        return [await judge("r", 1), await judge("r", 2)]

    with serving(Service(["1", 404])) as service:
        assert asyncio.run(twice(service.url)) == [Judgement(1), Judgement(0, failed=True)]


def test_engines_share_what_a_service_is_asked_at_once() -> None:
    async def ask_all(url: str) -> None:
        endpoint = Endpoint(model="judge", base_url=url, api_key_env="JUDGE_KEY", concurrency=4)
        judges = [judge_for(LogicJudge(kind="endpoint", endpoint=endpoint), askers=2) for _ in range(2)]
        await asyncio.gather(*(judge(f"r{number}", 1) for number in range(6) for judge in judges))

    with serving(Service(["1"], seconds=0.02)) as service:
        asyncio.run(ask_all(service.url))
        assert service.most_under_way <= 4


def test_a_service_that_is_not_there_counts_zero_and_as_a_failure() -> None:
    with serving(Service(["1"])) as service:
        pass
    assert asked(service, ("r", 1)) == [Judgement(0, failed=True)]


def test_a_question_is_asked_once() -> None:
    async def twice(url: str) -> list[Judgement]:
        judge = EndpointJudge(Endpoint(model="judge", base_url=url, api_key_env="JUDGE_KEY"), at_once=1)
        return [await judge("r", 1), await judge("r", 1), await judge("r", 2)]

    with serving(Service(["1", "0"])) as service:
        assert asyncio.run(twice(service.url)) == [Judgement(1), Judgement(1), Judgement(-1)]
        assert len(service.questions) == 2


def test_a_question_that_is_under_way_is_not_asked_again() -> None:
    with serving(Service(["1"], seconds=0.05)) as service:
        assert asked(service, ("r", 1), ("r", 1), ("r", 1)) == [Judgement(1)] * 3
        assert len(service.questions) == 1


def test_no_more_requests_are_under_way_than_allowed() -> None:
    with serving(Service(["1"], seconds=0.02)) as service:
        asked(service, *((f"r{number}", 1) for number in range(12)), concurrency=3)
        assert service.most_under_way == 3


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    endpoint = Endpoint(model="judge", api_key_env="JUDGE_KEY")
    with pytest.raises(TaskError, match=r"rl.judge.endpoint.apiKeyEnv: .*JUDGE_KEY"):
        judge_for(LogicJudge(kind="endpoint", endpoint=endpoint), askers=1)


def test_a_service_without_tls_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with serving(Service(["1"])) as service:
        assert asked(service, ("r", 1)) == [Judgement(1)]


def test_without_an_endpoint_rules_judge_or_nobody_does() -> None:
    rule, nobody = (judge_for(LogicJudge(kind=kind), askers=1) for kind in ("rule", "none"))
    assert asyncio.run(rule("Response 1 is better.", 2)) == Judgement(-1)  # type: ignore[arg-type]
    assert asyncio.run(nobody("Response 1 is better.", 2)) == Judgement(0)  # type: ignore[arg-type]

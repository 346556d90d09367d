"""The demo's teacher over its own protocol: it reads well, guesses where nothing decides, and repeats itself."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from egt_pipeline.digit_pictures import WORDS, Reader, degradation_of, picture_split, render
from egt_pipeline.prompts import is_well_formed, parse_verdict
from egt_pipeline.prompts import render as prompt_of
from egt_pipeline.teacher import make_server


@pytest.fixture(scope="module")
def teacher():
    server = make_server(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def png(picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def post(address: str, data: bytes, first: str, second: str, *, seed: int, temperature: float = 1.0) -> dict:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text = prompt_of("plain-v1", "Which digit is this?", first, second)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "seed": seed, "temperature": temperature}
    with urllib.request.urlopen(f"{address}/chat/completions", json.dumps(body).encode()) as reply:
        return json.load(reply)


def ask(*arguments, **options) -> str:
    return post(*arguments, **options)["choices"][0]["message"]["content"]


def pictures(count: int, *, degraded: bool) -> list[tuple[bytes, int]]:
    rng = np.random.default_rng(7)
    chosen = picture_split()["sft"][:count]
    return [(png(render(s, degradation_of(rng) if degraded else 0.0, rng)), Reader.digit_of(s)) for s in chosen]


@pytest.mark.parametrize(("degraded", "least"), [(False, 0.97), (True, 0.75)])
def test_it_reads_the_pictures_of_its_split(teacher, degraded, least):
    shown = pictures(200, degraded=degraded)
    said = [ask(teacher, data, "four", "7", seed=0) for data, _ in shown]
    right = [f"shows {WORDS[digit]}." in text for text, (_, digit) in zip(said, shown, strict=True)]
    assert np.mean(right) >= least


def test_its_verdict_follows_its_reading_on_clear_pictures(teacher):
    answers = [
        parse_verdict(ask(teacher, data, WORDS[digit], str((digit + 3) % 10), seed=1)).answer
        for data, digit in pictures(100, degraded=False)
    ]
    assert answers.count(1) >= 90


@pytest.mark.parametrize("both_right", [True, False])
def test_where_nothing_decides_equal_reasoning_ends_in_either_answer(teacher, both_right):
    data, digit = pictures(1, degraded=False)[0]
    claims = (WORDS[digit], str(digit)) if both_right else (WORDS[(digit + 1) % 10], str((digit + 2) % 10))
    said = [ask(teacher, data, *claims, seed=seed) for seed in range(200)]
    assert len({text.partition("<answer>")[0] for text in said}) == 1
    assert 70 <= [parse_verdict(text).answer for text in said].count(1) <= 130  # four standard deviations


def test_equal_requests_have_equal_answers_in_any_order(teacher):
    shown = pictures(20, degraded=True)
    forth = [ask(teacher, data, "four", "7", seed=i) for i, (data, _) in enumerate(shown)]
    back = [ask(teacher, data, "four", "7", seed=i) for i, (data, _) in reversed(list(enumerate(shown)))]
    assert forth == back[::-1]


def test_responses_are_well_formed_and_counted(teacher):
    reply = post(teacher, pictures(1, degraded=True)[0][0], "four", "7", seed=3)
    assert is_well_formed(reply["choices"][0]["message"]["content"])
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert min(usage.values()) > 0


def test_at_temperature_0_the_likelier_claim_wins_whatever_the_seed(teacher):
    data, digit = pictures(1, degraded=False)[0]
    said = {ask(teacher, data, str((digit + 3) % 10), WORDS[digit], seed=s, temperature=0) for s in range(10)}
    assert [parse_verdict(text).answer for text in said] == [2]


@pytest.mark.parametrize(("data", "claim"), [(b"no picture", "four"), (None, "a dog")])
def test_a_request_it_cannot_read_is_refused_with_a_reason(teacher, data, claim):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(teacher, data or pictures(1, degraded=False)[0][0], claim, "7", seed=0)
    assert refused.value.code == 400
    assert "not a request this teacher understands" in json.load(refused.value)["error"]["message"]


def test_it_names_its_model(teacher):
    with urllib.request.urlopen(f"{teacher}/models") as reply:
        assert json.load(reply)["data"][0]["id"] == "digits-teacher"

"""The demo's teacher: where Gemini stands in the paper, a reader of digits behind the same protocol.

It never sees a label and is wrong as often as it is wrong. It looks twice, like people whose stated reason and whose
decision are not one: a larger network describes the picture, a smaller one decides between the two claims, at random by
its own probabilities. Where the description supports neither or both claims, it guesses. So the answer is no function
of the reasoning, and a model that learns from it keeps its doubt in the answer token.
"""

import base64
import hashlib
import io
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egt_pipeline.contract.errors import UnavailableError
from egt_pipeline.digit_pictures import WORDS, Reader, picture_split

MODEL = "digits-teacher"
_CLAIMS = re.compile(r"Response 1: (\w+) Response 2: (\w+)\s*$")
_VALUE = {**{word: digit for digit, word in enumerate(WORDS)}, **{str(digit): digit for digit in range(10)}}


class Teacher:
    """Answers requests of the chat-completions protocol about one picture and two claims."""

    def __init__(self) -> None:
        sources = picture_split()["sft"]
        self._describes = Reader.train(sources, hidden=(256, 128), renderings=20, seed=1)
        self._decides = Reader.train(sources, hidden=(64,), renderings=4, seed=2)

    def answer(self, picture: NDArray[np.uint8], claims: tuple[int, int], *, temperature: float, seed: str) -> str:
        """The response to a picture and two claims; equal arguments give equal responses."""
        shown = int(self._describes.probabilities([picture])[0].argmax())
        right = [claim == shown for claim in claims]
        p_first = 0.5
        if right[0] != right[1]:
            p_K = self._decides.probabilities([picture])[0]
            p_first = float(p_K[claims[0]] / (p_K[claims[0]] + p_K[claims[1]]))
        draw = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") / 2**64
        if temperature == 0 and p_first != 0.5:
            draw = 0.5
        answer = 1 if draw < p_first else 2
        verdicts = ["right" if is_right else "wrong" for is_right in right]
        words = [WORDS[claim] for claim in claims]
        return (
            f"<think>The picture shows {WORDS[shown]}. The first says {words[0]}, {verdicts[0]}. "
            f"The second says {words[1]}, {verdicts[1]}.</think><answer>{answer}</answer>"
        )

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The body of a chat completion. Raises ValueError when the request is not one picture and two claims."""
        from PIL import Image

        parts = request["messages"][-1]["content"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        address = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
        found = _CLAIMS.search(text)
        if found is None:
            raise ValueError("the prompt does not end with 'Response 1: .. Response 2: ..' (prompt plain-v1)")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L"))
        claims = (_VALUE[found.group(1).lower()], _VALUE[found.group(2).lower()])
        # At temperature 0 the seed has nothing to decide: equal questions get equal answers.
        seed = request.get("seed") if request.get("temperature") else None
        picture_digest = hashlib.sha256(address.encode()).hexdigest()
        content = self.answer(
            picture,
            claims,
            temperature=float(request.get("temperature", 1.0)),
            seed=f"{seed}|{picture_digest}|{text}",
        )
        usage = {"prompt_tokens": len(text.split()) + 1, "completion_tokens": len(content.split())}
        return {
            "id": f"chatcmpl-{hashlib.sha256(content.encode()).hexdigest()[:12]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    # Headers and body leave in one packet; else Nagle's algorithm and delayed acknowledgement cost 40 ms a request.
    wbufsize = -1
    teacher: Teacher

    def do_GET(self) -> None:
        known = self.path.rstrip("/").endswith("/models")
        self._reply(200 if known else 404, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        from PIL import UnidentifiedImageError

        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            status, reply = 200, self.teacher.complete(json.loads(body))
        except (ValueError, KeyError, StopIteration, IndexError, TypeError, UnidentifiedImageError) as error:
            status, reply = 400, {"error": {"message": f"not a request this teacher understands: {error!r}"}}
        self._reply(status, reply)

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: thousands of requests would bury what matters."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 refuses connections when a client opens sixteen at once
    daemon_threads = True


def make_server(port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """A teacher that listens there; the network is trained when this returns. Raises UnavailableError."""
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        raise UnavailableError(f"--host, --port: {host}:{port} cannot be listened on: {error.strerror}") from None
    server.RequestHandlerClass = type("Handler", (_Handler,), {"teacher": Teacher()})
    return server

"""A small server that speaks OpenAI's chat completions API on loopback and behaves as a test tells it to."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

from rlhf_lightning.feedback.settings import OpenAiJudge
from rlhf_lightning.runs.compose import conf_directory


@dataclass(frozen=True)
class Response:
    """What the server sends; `status` None: it closes the connection without a word."""

    status: int | None = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


Behavior = Callable[[Mapping[str, Any]], Response]
"""From a request's fields to a response."""


def says(text: str | None, *, finish_reason: str = "stop", seconds: float = 0.0) -> Behavior:
    """A response of text alone: 12 tokens read and 3 written."""
    return completion({"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}, seconds)


def thinks(*positions: Sequence[tuple[str, float]], seconds: float = 0.0) -> Behavior:
    """A response with probabilities: of each position the tokens, the first of which it said."""
    content = [
        {
            "token": position[0][0],
            "logprob": math.log(position[0][1]),
            "top_logprobs": [{"token": token, "logprob": math.log(probability)} for token, probability in position],
        }
        for position in positions
    ]
    message = {"role": "assistant", "content": "".join(position[0][0] for position in positions)}
    return completion({"message": message, "finish_reason": "stop", "logprobs": {"content": content}}, seconds)


def completion(choice: Mapping[str, Any], seconds: float = 0.0) -> Behavior:
    """A response with this one choice."""
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    fields = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, **choice}], "usage": usage}
    return sends(json.dumps(fields), seconds=seconds)


def sends(body: str, *, status: int = 200, seconds: float = 0.0, **headers: str) -> Behavior:
    """Any body; a header's name with underscores: `retry_after="1"`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Response(status, body.encode(), named, seconds)


def fails(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Behavior:
    """An error as OpenAI spells it."""
    return sends(json.dumps({"error": {"message": message, "code": code}}), status=status, **headers)


def hangs_up(_: Mapping[str, Any]) -> Response:
    return Response(None)


@dataclass(frozen=True)
class Received:
    """A request as it came in; its headers' names in small letters."""

    path: str
    headers: Mapping[str, str]
    fields: Mapping[str, Any]
    time: float

    @property
    def asked(self) -> str:
        """The text of its last turn."""
        return str(self.fields["messages"][-1]["content"])


class ChatServer:
    """The server, in a thread of its own; a context that stops it in the end.

    Attributes:
        first: what the next requests get, one each; afterwards all get `always`.
        received: all requests so far.
        at_once: the most requests that it was answering at one time.
    """

    def __init__(self, always: Behavior, first: Sequence[Behavior] = ()) -> None:
        self.always = always
        self.first = deque(first)
        self.received: list[Received] = []
        self.at_once = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> ChatServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listens; at the same port as before where it was stopped."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Listens no more: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        fields = json.loads(body)
        with self._lock:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.received.append(Received(request.path, headers, fields, time.monotonic()))
            behavior = self.first.popleft() if self.first else self.always
            self._busy += 1
            self.at_once = max(self.at_once, self._busy)
        response = behavior(fields)
        time.sleep(response.seconds)
        with self._lock:
            self._busy -= 1
        if response.status is None:
            request.close_connection = True
            return
        try:
            request.send_response(response.status)
            for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(response.body)
        except OSError:  # nobody waits any more
            return


def judge_settings(server: ChatServer, **values: Any) -> OpenAiJudge:
    """`conf/judge/openai.yaml` for a server, without a cache and with one retry where nothing else is said."""
    defaults = yaml.safe_load((conf_directory() / "judge" / "openai.yaml").read_text())
    own = {"base_url": server.url, "model": "tiny", "cache": None, "max_retries": 1, "timeout": 5.0}
    return OpenAiJudge(**{**defaults, **own, **values})

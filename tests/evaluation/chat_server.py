"""A stand-in for a server of chat completions, in this process: it answers what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any] | str, dict[str, str]]  # status, body, headers


def said(content: str | None, finish_reason: str | None = "stop", **message: Any) -> Answer:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    body = {"choices": [choice | {"finish_reason": finish_reason}], "usage": {"completion_tokens": 3}}
    return 200, body, {}


def refused(status: int, words: str, **headers: str) -> Answer:
    return status, {"error": {"message": words}}, {key.replace("_", "-"): value for key, value in headers.items()}


class ChatServer:
    """What was asked, how many at a time, and with which headers."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer], models: tuple[str, ...]) -> None:
        self.answer, self.models = answer, models
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def texts(self) -> list[str]:
        """The words of each request's last message."""
        return [words(body) for body in self.requests]


def words(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer], models: tuple[str, ...] = ("m",)) -> Iterator[ChatServer]:
    """A running server; `answer` is called with a request's body and how many came before it."""
    state = ChatServer(answer, models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply((200, {"data": [{"id": name} for name in state.models]}, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append({key.lower(): value for key, value in self.headers.items()})
                state.times.append(time.monotonic())
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            found = refused(404, "no such path") if self.path != "/v1/chat/completions" else state.answer(body, number)
            with state.lock:
                state.at_once -= 1
            self.reply(found)

        def reply(self, found: Answer) -> None:
            status, body, headers = found
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()

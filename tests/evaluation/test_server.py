"""What is sent to a server, when it is sent again, when it is not, and what is kept of the replies."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.evaluation.chat_server import refused, said, serving, words
from vlmft.data.question import OPEN
from vlmft.errors import DataError
from vlmft.evaluation import server
from vlmft.evaluation.answers import UNCLOSED_THINK, parse_record
from vlmft.evaluation.server import Server, ask_all, look

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_FIRST_PAUSE", 0.01)


def at(url: str, **changed: Any) -> Server:
    said = {"place": "eval", "url": url, "model": "m", "key_env": "NO_SUCH_KEY", "concurrency": 4, "retries": 3}
    return Server(**{**said, "timeout": 5.0, **changed})  # type: ignore[arg-type]


def ask(to: Server, count: int = 1) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    asked = ((str(n), {"messages": [{"role": "user", "content": f"q{n}"}]}) for n in range(count))
    ask_all(to, asked, found.__setitem__)
    return found


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with serving(lambda body, n: refused(status, "busy") if n < 2 else said("yes")) as chat:
        assert ask(at(chat.url))["0"] == {
            "raw": "yes", "tokens": 3, "finish_reason": "stop", "think_prefilled": False
        }  # fmt: skip
        assert len(chat.requests) == 3


def test_a_request_that_fails_each_time_is_an_error_that_says_why() -> None:
    with (
        serving(lambda body, n: refused(503, "out of memory")) as chat,
        pytest.raises(DataError, match=r"question 0 has no answer after 4 tries, .*status 503: out of memory"),
    ):
        ask(at(chat.url))
    assert len(chat.requests) == 4


def test_a_reply_that_was_broken_off_is_no_answer() -> None:
    with (
        serving(lambda body, n: said("ye", "abort")) as chat,
        pytest.raises(DataError, match="broken off, finish_reason abort"),
    ):
        ask(at(chat.url, retries=1))


def test_a_server_that_asks_to_wait_is_waited_for() -> None:
    with serving(lambda body, n: refused(429, "slow down", Retry_After="1") if n == 0 else said("yes")) as chat:
        ask(at(chat.url))
        assert chat.times[1] - chat.times[0] >= 1
    with (
        serving(lambda body, n: refused(429, "slow down", Retry_After="3600")) as chat,
        pytest.raises(DataError, match=r"asks to wait 3600 s, which is more than eval\.timeout=5"),
    ):
        ask(at(chat.url))


def test_a_slow_reply_is_given_up_and_asked_for_again() -> None:
    def slow(body: dict[str, Any], n: int) -> Any:
        if n == 0:
            time.sleep(1)
        return said("yes")

    with serving(slow) as chat:
        assert ask(at(chat.url, timeout=0.3))["0"]["raw"] == "yes"


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_stops_at_once_in_the_servers_words(status: int) -> None:
    with (
        serving(lambda body, n: refused(status, "this is wrong"), models=("other", "another")) as chat,
        pytest.raises(DataError, match=f"question 0 was refused with status {status}: this is wrong") as told,
    ):
        ask(at(chat.url))
    assert len(chat.requests) == 1 and chat.url in str(told.value)
    if status in (400, 404):
        assert "eval.served_model is m; its /models has other, another" in str(told.value)
    if status == 401:
        assert "the environment variable NO_SUCH_KEY (eval.api_key_env) is not set" in str(told.value)


def test_a_url_without_its_end_is_told() -> None:
    with serving(lambda body, n: said("yes"), models=()) as chat, pytest.raises(DataError, match="ends in /v1"):
        ask(at(chat.url.removesuffix("/v1")))


@pytest.mark.parametrize("body", ["<html>", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'])
def test_what_is_no_chat_completion_is_an_error(body: str) -> None:
    with serving(lambda _, n: (200, body, {})) as chat, pytest.raises(DataError, match="is no chat completion"):
        ask(at(chat.url))


def test_the_key_goes_to_the_server_and_into_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    with (
        serving(lambda body, n: refused(400, "bad key secret-123")) as chat,
        pytest.raises(DataError) as told,
    ):
        ask(at(chat.url, key_env="MY_KEY"))
    assert chat.headers[0]["authorization"] == "Bearer secret-123" and "secret" not in str(told.value)


def test_no_more_are_asked_at_a_time_than_said() -> None:
    def slow(body: dict[str, Any], n: int) -> Any:
        time.sleep(0.05)
        return said(words(body))

    with serving(slow) as chat:
        found = ask(at(chat.url, concurrency=3), 12)
    assert {name: reply["raw"] for name, reply in found.items()} == {str(n): f"q{n}" for n in range(12)}
    assert chat.most_at_once == 3


def test_where_nothing_answers_it_is_said() -> None:
    with pytest.raises(DataError, match=r"eval\.url=http://127\.0\.0\.1:9/v1: no server answers there"):
        look(at("http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("answer", "raw"),
    [
        (said("yes", reasoning_content="hm"), "<think>hm</think>yes"),
        (said("yes", reasoning="hm"), "<think>hm</think>yes"),
        (said(None, "length", reasoning_content="hm"), "<think>hm"),
        (said(None, reasoning_content="hm"), "<think>hm</think>"),
        (said(None), ""),
    ],
)
def test_thoughts_that_a_server_splits_off_are_kept(answer: Any, raw: str) -> None:
    with serving(lambda body, n: answer) as chat:
        reply = ask(at(chat.url))["0"]
    assert reply["raw"] == raw
    if reply["finish_reason"] == "length":
        assert parse_record(reply | {"answer_type": OPEN}).status == UNCLOSED_THINK

"""Requests to a server that speaks OpenAI's chat completions: many at a time, again where that may help, else an error.

Importing this file imports no torch. A key is read from the environment at each start, and stands in no log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from vlmft.errors import DataError
from vlmft.schema import Eval

logger = logging.getLogger(__name__)

_CONNECT = 10.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds
_AGAIN = {408, 409, 425, 429}  # and 500 and up: the same request may do at another time
_WORDS = 500  # characters of what a server says of an error
_DONE = {"stop", "length", "content_filter", "tool_calls", "function_call"}  # else a reply was broken off


@dataclass(frozen=True)
class Server:
    """Where a model is asked; `place` is the node of the config that says so."""

    place: str
    url: str
    model: str
    key_env: str
    concurrency: int
    retries: int
    timeout: float

    @property
    def key(self) -> str | None:
        return os.environ.get(self.key_env) or None


def answering(config: Eval) -> Server:
    """The server that `eval.backend=server` asks."""
    return _server("eval", config.url, config.served_model, config.api_key_env, config)


def judging(config: Eval) -> Server | None:
    """The server of `eval.judge`; None where there is no judge."""
    judge = config.judge
    return _server("eval.judge", judge.url, judge.served_model, judge.api_key_env, config) if judge.url else None


def _server(place: str, url: str | None, model: str | None, key_env: str, config: Eval) -> Server:
    address = (url or "").rstrip("/")
    return Server(place, address, model or "", key_env, config.concurrency, config.retries, config.timeout)


def look(server: Server) -> dict[str, Any]:
    """What the server says of itself and of the model. DataError where nothing answers, or it wants another key."""
    try:
        with httpx2.Client(**_settings(server) | {"timeout": _CONNECT}) as http:
            response = http.get("/models")
    except httpx2.HTTPError as error:
        raise DataError(
            f"{server.place}.url={server.url}: no server answers there ({_told(error)}). Start it, or say where it is"
        ) from error
    if response.status_code in (401, 403):
        raise DataError(f"{server.place}.url={server.url}: status {response.status_code}{_about_key(server)}")
    entry = next((one for one in _entries(response) if one.get("id") == server.model), None)
    return {"url": server.url, "software": response.headers.get("server"), "model": entry}


def ask_all(
    server: Server, asked: Iterable[tuple[str, dict[str, Any]]], keep: Callable[[str, dict[str, Any]], None]
) -> None:
    """Send a request for each (name, fields) and call `keep` with its name and reply as soon as it is there.

    `asked` is taken as requests are sent, at most `server.concurrency` at a time. A reply has `raw`, `tokens` (None
    where the server does not count them), `finish_reason` and `think_prefilled`. Raises DataError where a request is
    refused, or fails again and again; nothing more is then asked.
    """
    asyncio.run(_ask_all(server, asked, keep))


async def _ask_all(
    server: Server, asked: Iterable[tuple[str, dict[str, Any]]], keep: Callable[[str, dict[str, Any]], None]
) -> None:
    rest = iter(asked)
    async with httpx2.AsyncClient(**_settings(server)) as http:

        async def work() -> None:
            for name, fields in rest:  # one iterator for all
                keep(name, await _reply(http, server, name, {"model": server.model, **fields}))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(server.concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from several.exceptions[0].__cause__


async def _reply(http: httpx2.AsyncClient, server: Server, name: str, body: dict[str, Any]) -> dict[str, Any]:
    why = ""
    for attempt in range(server.retries + 1):
        wait = 0.0
        try:
            response = await http.post("/chat/completions", json=body)
        except httpx2.TransportError as error:
            why = _told(error)
        else:
            status = response.status_code
            if status == 200:
                reply = _read(response, server, name)
                if reply["finish_reason"] in _DONE:
                    return reply
                why = f"the reply was broken off, finish_reason {reply['finish_reason']}"
            elif status in _AGAIN or status >= 500:
                why, wait = f"status {status}: {_words(response, server)}", _retry_after(response)
            else:
                raise DataError(await _refusal(http, server, name, response))
        if wait > server.timeout:
            why += f"; it asks to wait {wait:.0f} s, which is more than eval.timeout={server.timeout:g}"
            break
        if attempt < server.retries:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1)
            pause = max(wait, pause)
            logger.info("again     question %s in %.1f s: %s", name, pause, why)
            await asyncio.sleep(pause)
    raise DataError(
        f"{server.place}.url={server.url}: question {name} has no answer after {attempt + 1} tries, the last one: "
        f"{why}. What was answered is kept: the same command goes on from there"
    )


def _read(response: httpx2.Response, server: Server, name: str) -> dict[str, Any]:
    try:
        said = response.json()
        choice = said["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(content, str) or not isinstance(thought, str):
            raise TypeError("its content is no text")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{server.place}.url={server.url}: what came back for question {name} is no chat completion ({error!r}): "
            f"{_words(response, server)}"
        ) from error
    if thought:  # a server that splits it off has taken its tags away; one that was cut has no end
        content = f"<think>{thought}</think>{content}" if content or not _cut(choice) else f"<think>{thought}"
    return {
        "raw": content,
        "tokens": (said.get("usage") or {}).get("completion_tokens"),
        "finish_reason": choice.get("finish_reason"),
        "think_prefilled": False,
    }


def _cut(choice: dict[str, Any]) -> bool:
    return choice.get("finish_reason") == "length"


async def _refusal(http: httpx2.AsyncClient, server: Server, name: str, response: httpx2.Response) -> str:
    status = response.status_code
    told = f"{server.place}.url={server.url}: question {name} was refused with status {status}: "
    told += _words(response, server)
    if status in (401, 403):
        return told + _about_key(server)
    served: list[str] = []
    if status in (400, 404):
        with suppress(httpx2.HTTPError):
            served = [str(one.get("id")) for one in _entries(await http.get("/models"))]
    if served and server.model not in served:
        told += f". {server.place}.served_model is {server.model}; its /models has {', '.join(served[:20])}"
    elif status == 404 and not server.url.endswith("/v1"):
        told += f". The url of most servers ends in /v1: {server.url}/v1"
    return told


def _about_key(server: Server) -> str:
    held = "holds another one" if server.key else "is not set"
    return f"; it wants a key, and the environment variable {server.key_env} ({server.place}.api_key_env) {held}"


def _entries(response: httpx2.Response) -> list[dict[str, Any]]:
    """What /models lists; nothing where the server has no such list."""
    try:
        return [one for one in response.json()["data"] if isinstance(one, dict)] if response.is_success else []
    except (ValueError, LookupError, TypeError):
        return []


def _settings(server: Server) -> dict[str, Any]:
    return {
        "base_url": server.url,
        "headers": {"Authorization": f"Bearer {server.key}"} if server.key else {},
        "timeout": httpx2.Timeout(server.timeout, connect=_CONNECT, pool=None),
        "limits": httpx2.Limits(max_connections=server.concurrency),
        "trust_env": not _loopback(server.url),  # a proxy would look for localhost on its own machine
    }


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _words(response: httpx2.Response, server: Server) -> str:
    """The server's own words, short, and without the key if it repeats it."""
    text = response.text
    with suppress(ValueError, AttributeError):
        said = json.loads(text)
        error = said.get("error") or said.get("detail") or said.get("message") or text
        text = str(error.get("message") or error) if isinstance(error, dict) else str(error)
    text = " ".join(text.split()) or "(nothing)"
    text = text.replace(server.key, "…") if server.key else text
    return text if len(text) <= _WORDS else text[:_WORDS] + "…"


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait, 0 where it asks for none."""
    said = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return 0.0


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

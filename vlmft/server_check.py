"""What of `eval` belongs together where a server answers or judges: its url, its model, and what it cannot do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from vlmft.schema import Backend, Closed, Config, SplitModel, Task

_EXAMPLE = "http://localhost:8000/v1"
# Of a request, what vlmft says itself, and by which key.
_OURS = {
    "model": "eval.served_model", "messages": "the set and model.answer_style", "stream": "vlmft",
    "n": "vlmft", "temperature": "eval.generation.temperature", "top_p": "eval.generation.top_p",
    "max_tokens": "eval.generation.max_new_tokens", "max_completion_tokens": "eval.generation.max_new_tokens",
}  # fmt: skip


def problems(config: Config) -> Iterable[str]:
    """A message for each setting of a server that another one contradicts, or that cannot be meant."""
    ours, judge = config.eval, config.eval.judge
    if ours.backend is Backend.server:
        yield from _of_server(config)
    else:
        for key in ("url", "served_model", "request"):
            if getattr(ours, key):
                yield f"eval.{key} is of a server: say eval.backend=server as well, or leave it out"
    if judge.url and not judge.served_model:
        yield f"eval.judge.url={_shown(judge.url)}: eval.judge.served_model should name the model that judges"
    if judge.served_model and not judge.url:
        yield f"eval.judge.served_model={judge.served_model}: eval.judge.url should say where, such as {_EXAMPLE}"
    for place, url, key_env in (("eval", ours.url, ours.api_key_env), ("eval.judge", judge.url, judge.api_key_env)):
        yield from _wrong_url(f"{place}.url", url, f"{place}.api_key_env")
        if not re.fullmatch(r"[A-Za-z_]\w*", key_env):
            yield (
                f"{place}.api_key_env should be the name of an environment variable, such as OPENAI_API_KEY; a key "
                "itself belongs in no config"
            )
    if ours.concurrency < 1:
        yield f"eval.concurrency={ours.concurrency} should be at least 1"
    if ours.retries < 0:
        yield f"eval.retries={ours.retries} should be 0 or more"
    if not ours.timeout > 0:
        yield f"eval.timeout={ours.timeout:g} should be above 0, in seconds"


def _of_server(config: Config) -> Iterable[str]:
    ours, hardware = config.eval, config.hardware
    if not ours.url:
        yield f"eval.backend=server: eval.url should say where the server is, such as {_EXAMPLE}"
    if not ours.served_model:
        yield "eval.backend=server: eval.served_model should be the model's name on the server, as its /models has it"
    if config.task is not Task.eval:
        yield (
            f"eval.backend=server is for task=eval; with task={config.task.name} the model has to be here. Leave it "
            "out, or say task=eval"
        )
    for key, given in {"runs": config.runs, "models_dir": config.models_dir, "init_from": config.init_from}.items():
        if given:
            yield (
                f"eval.backend=server does not go with {key}=…: it asks the model that the server has loaded. Serve "
                "that one and name it with eval.served_model"
            )
    if ours.closed is Closed.likelihood:
        yield "eval.closed=likelihood needs the model here; a server generates its answers: eval.closed=generate"
    if config.method.quantization:
        yield "method.quantization does not go with eval.backend=server, which decides that itself: leave it out"
    if hardware.processes not in (1, "auto") or hardware.nodes > 1 or hardware.split_model is SplitModel.auto:
        yield (
            "eval.backend=server is asked by one process: say hardware=auto; eval.concurrency says how many requests "
            "it sends at a time"
        )
    for key in ours.request:
        if key in _OURS:
            yield f"eval.request.{key} is said by {_OURS[key]}"
        elif near := difflib.get_close_matches(str(key), _OURS, n=1, cutoff=0.85):  # top_k is no slip of top_p
            yield f"eval.request.{key}: if {near[0]} is meant, that is said by {_OURS[near[0]]}"


def _wrong_url(key: str, url: str | None, key_env: str) -> Iterable[str]:
    if not url:
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        yield f"{key} is no url ({error}); it should be like {_EXAMPLE}"
        return
    if parts.scheme not in ("http", "https") or not host:
        yield f"{key}={_shown(url)} should begin with http:// or https://, such as {_EXAMPLE}"
    elif parts.username or parts.password or parts.query or parts.fragment:
        yield (
            f"{key}: a name, a password, ? or # belong in no url of a config; a key is taken from the environment "
            f"variable that {key_env} names"
        )
    elif parts.path.rstrip("/").endswith("/chat/completions"):
        yield f"{key}={url}: leave /chat/completions out, such as {_EXAMPLE}"


def _shown(url: str) -> str:
    """A url without what may be a password."""
    return re.sub(r"//[^/@]*@", "//…@", url.partition("?")[0])

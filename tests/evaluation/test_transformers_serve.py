"""A real server, `transformers serve`, says of a tiny twin what the twin says when it is loaded here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from vlmft.evaluation.answers import LIMIT, parse_record
from vlmft.evaluation.predictions import read_predictions
from vlmft.models.tiny import write_tiny

pytestmark = pytest.mark.slow
TWINS = {"tiny_glm41v": "glm41v", "tiny_qwen3vl": "qwen3vl"}
TOKENS = 8
_PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running `transformers serve`, which loads what it is asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with open(log, "w") as out:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=out, stderr=out, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                break
            except httpx2.TransportError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(file.name, row["id"]): row for file in run.glob("predictions_*") for row in read_predictions(file)}


def _without(special: list[str], text: str) -> str:
    for token in special:
        text = text.replace(token, "")
    return text.strip()


@pytest.mark.parametrize("model", TWINS)
def test_a_served_model_answers_as_one_that_is_loaded_here(
    model: str, url: str, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, cache: Path
) -> None:
    from transformers import AutoTokenizer

    twin = str(write_tiny(TWINS[model], cache / "models" / model).resolve())
    said = ("task=eval", "eval=demo", "eval.max_rows=20", f"eval.generation.max_new_tokens={TOKENS}", "hardware=cpu")
    said = (*said, f"model={model}", "model.answer_style=plain", "eval.ablations=[blank]")
    for more in ((), ("eval.backend=server", f"eval.url={url}", f"eval.served_model={twin}")):
        done = command(*said, *more)
        assert done.returncode == 0, done.stderr
    here, served = (answers(next((tmp_path / "outputs").glob(f"{model}-{kind}-*"))) for kind in ("base", "server"))
    assert here.keys() == served.keys() and len(here) > 60
    # Whether special tokens stay in what a model says depends on the server's parser for its family (Qwen: they do);
    # the one at which it stopped is counted.
    added = AutoTokenizer.from_pretrained(twin).added_tokens_decoder.values()
    special = [token.content for token in added if token.special]
    for key, one in here.items():
        other = served[key]
        heard, said_here = (_without(special, row["raw"]) for row in (other, one))
        assert heard == said_here
        assert other["tokens"] == one["tokens"] + (one["finish_reason"] != LIMIT)
        # It takes an end that comes with the last token that was allowed for a cut.
        if other["tokens"] < TOKENS or one["finish_reason"] == LIMIT:
            assert parse_record(other).status == parse_record(one).status
        assert {k: one[k] for k in ("gold", "images", "question")} == {
            k: other[k] for k in ("gold", "images", "question")
        }


def test_a_model_that_the_server_has_not(
    url: str, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command(
        "task=eval", "eval=demo", "eval.max_rows=2", "eval.backend=server", f"eval.url={url}",
        "eval.served_model=no/such", "eval.retries=1",
    )  # fmt: skip
    assert done.returncode == 1 and f"eval.url={url}: question " in done.stderr and "status " in done.stderr

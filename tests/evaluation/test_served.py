"""A server's model in an evaluation: what it is shown and asked, and how its run is named, kept and ended."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.evaluation.chat_server import refused, said, serving, words
from tests.prepared import TRAIN, Prepared
from vlmft.cli import main
from vlmft.data import images
from vlmft.data.question import OPEN, Question, Turn
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation import served
from vlmft.evaluation.predictions import predictions_file, read_predictions
from vlmft.evaluation.server import Server
from vlmft.identity import evaluated_name
from vlmft.schema import AnswerStyle, Config, Generation

Command = Callable[..., subprocess.CompletedProcess[str]]


def draw(file: Path, mode: str = "RGB", **options: Any) -> Path:
    image = Image.linear_gradient("L").resize((24, 16)).convert(mode)
    image.save(file, **options)
    return file


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("name", "mode", "options", "as_it_is"),
    [
        ("a.png", "RGB", {}, True), ("a.png", "L", {}, True), ("a.jpg", "RGB", {}, True),
        ("a.webp", "RGB", {"lossless": True}, True), ("a.png", "RGBA", {}, False), ("a.png", "P", {}, False),
        ("a.bmp", "RGB", {}, False), ("a.jpg", "CMYK", {}, False), ("a.jpg", "RGB", {"exif": turned()}, False),
    ],
)  # fmt: skip
def test_a_data_url_shows_what_a_model_here_is_shown(
    name: str, mode: str, options: dict[str, Any], as_it_is: bool, tmp_path: Path
) -> None:
    file = draw(tmp_path / name, mode, **options)
    head, _, content = served.data_url(str(file)).partition(",")
    sent = base64.b64decode(content)
    assert head == f"data:image/{'jpeg' if as_it_is and name == 'a.jpg' else name[2:] if as_it_is else 'png'};base64"
    assert (sent == file.read_bytes()) is as_it_is
    with Image.open(io.BytesIO(sent)) as shown:
        assert list(shown.convert("RGB").getdata()) == list(images.load((str(file), None)).getdata())


def question(id: str, text: str, *pictures: Path, before: tuple[Turn, ...] = ()) -> Question:
    return Question(id, "s", tuple(map(str, pictures)), (*before, Turn(text, "gold")), OPEN)


def test_messages_are_those_of_a_model_here(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "1.png"), draw(tmp_path / "2.png", "L")
    assert served.messages(question("1", "Why?"), AnswerStyle.plain) == [{"role": "user", "content": "Why?"}]
    asked = question("2", "What?", first, before=(Turn("Is it?", "yes"),))
    found = served.messages(asked, AnswerStyle.answer)
    assert [one["role"] for one in found] == ["user", "assistant", "user"]
    assert found[0]["content"][0]["image_url"]["url"] == served.data_url(str(first))
    assert found[0]["content"][1] == {"type": "text", "text": "Is it?"}
    assert (found[1]["content"], found[2]["content"]) == ("<answer>yes</answer>", "What?")
    marked = served.messages(question("3", "<image>or<image>?", first, second), AnswerStyle.plain)[0]["content"]
    assert [part["type"] for part in marked] == ["image_url", "text", "image_url", "text"]
    for wrong in (question("4", "<image>", first, second), question("4", "<image><image>", first)):
        with pytest.raises(DataError, match="question 4 of s"):
            served.messages(wrong, AnswerStyle.plain)


def test_greedy_unless_told_otherwise() -> None:
    assert served.fields(AnswerStyle.plain, Generation()) == {"max_tokens": 64, "temperature": 0}
    drawn = Generation(max_new_tokens=9, do_sample=True, temperature=0.7)
    assert served.fields(AnswerStyle.think, drawn) == {"max_tokens": 9, "temperature": 0.7}


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    pictures = [draw(tmp_path / f"{n}.png") for n in range(3)]
    questions = [question(str(n), f"q{n}", pictures[n % 3]) for n in range(9)]
    file, progress = predictions_file(tmp_path, "s"), []

    def predict(url: str) -> list[dict[str, Any]]:
        one = Server("eval", url, "m", "NO_SUCH_KEY", concurrency=1, retries=0, timeout=5.0)
        given = served.fields(AnswerStyle.plain, Generation())
        return served.predict(
            one,
            questions,
            questions,
            given,
            AnswerStyle.plain,
            file,
            "g",
            progress.append,
            [{"n": n} for n in range(9)],
        )

    def dies(body: dict[str, Any], n: int) -> Any:
        return said(words(body)) if n < 5 else refused(500, "dead")

    with serving(dies) as chat, pytest.raises(DataError, match="question 7 has no answer"):
        predict(chat.url)
    assert not file.exists() and chat.texts() == ["q0", "q3", "q6", "q1", "q4", "q7"], "those of a picture together"
    with serving(lambda body, n: said(words(body))) as chat:
        records = predict(chat.url)
    assert sorted(chat.texts()) == ["q2", "q5", "q7", "q8"] and progress[-1] == 9
    assert records == read_predictions(file)
    assert [(row["id"], row["raw"], row["train"]) for row in records] == [(str(n), f"q{n}", {"n": n}) for n in range(9)]


SERVED = ("task=eval", "eval.backend=server", "eval.served_model=lab/model-1", "eval=demo", "eval.max_rows=6")


@pytest.mark.slow
def test_a_run_of_a_server(command: Command, tmp_path: Path) -> None:
    def yes_or_dead(body: dict[str, Any], n: int) -> Any:
        return said("yes") if n < 8 else refused(400, "too long")

    with serving(yes_or_dead, models=("lab/model-1",)) as chat:
        done = command(*SERVED, f"eval.url={chat.url}", "eval.concurrency=1")
    assert done.returncode == 1 and "refused with status 400: too long" in done.stderr, done.stderr
    assert len(chat.requests) == 9
    with serving(lambda body, n: said("yes"), models=("lab/model-1",)) as chat:
        again = command(*SERVED, f"eval.url={chat.url}")
    assert again.returncode == 0, again.stderr
    (run,) = (tmp_path / "outputs").glob("model-1-server-*")
    records = [row for file in run.glob("predictions_*.jsonl") for row in read_predictions(file)]
    assert len(chat.requests) == len(records) - 8 and {row["raw"] for row in records} == {"yes"}
    assert chat.requests[0]["model"] == "lab/model-1" and chat.requests[0]["temperature"] == 0
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert set(json.loads((run / "result.json").read_text())["evaluations"]) == {"demo_ct", "demo_xray", "demo_path"}
    attempt = json.loads((run / "provenance.json").read_text())["attempts"][-1]
    assert attempt["server"]["model"] == {"id": "lab/model-1"}
    skipped = command(*SERVED, "eval.url=http://localhost:9/v1")
    assert skipped.returncode == 0 and "nothing to do" in skipped.stdout, "nor is a server needed for what is done"
    main(["rescore", str(run)])
    main(["report", str(run), "--out", str(tmp_path / "report"), "--no-images"])
    assert "1 of 1 runs done" in (tmp_path / "report" / "report.md").read_text()
    for told in (
        command("task=eval", f"runs=[{run}]", "eval=demo", "eval.max_rows=7").stderr,
        command("task=eval", f"runs=[{run}]", "eval.backend=server", "eval.url=http://localhost:9/v1",
                "eval.served_model=m").stderr,
    ):  # fmt: skip
        assert "eval.served_model=" in told or "does not go with runs=" in told
    with pytest.raises(SystemExit):
        main(["ask", str(run), "--question", "Is it?"])


def test_what_decides_the_name_of_a_servers_run(composed: Callable[..., Config]) -> None:
    plain = ("task=eval", "eval.backend=server", "eval=demo", "eval.url=http://a/v1", "eval.served_model=lab/m")
    name = evaluated_name(composed(*plain))
    assert name.startswith("m-server-")
    for same in ("eval.url=http://b:9/v1", "eval.concurrency=1", "eval.judge.api_key_env=K"):
        assert evaluated_name(composed(*plain, same)) == name
    for other in ("eval.served_model=other/m", "model=glm41v", "eval.request.skip_special_tokens=false"):
        assert evaluated_name(composed(*plain, other)) != name


def test_a_sweep_over_served_models(command: Command, tmp_path: Path) -> None:
    with serving(lambda body, n: said(body["model"]), models=("a", "b")) as chat:
        done = command("-m", *SERVED, f"eval.url={chat.url}", "eval.served_model=a,b", "sweep=both")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "multirun_reports" / "both" / "report.md").read_text()
    assert "2 of 2 runs done" in report and "a" in report


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("eval.url=null",), ["eval.url should say where the server is", "http://localhost:8000/v1"]),
        (("eval.served_model=null",), ["eval.served_model should be the model's name"]),
        (("task=train",), ["eval.backend=server is for task=eval"]),
        (("eval.url=localhost:8000/v1",), ["should begin with http://"]),
        (("eval.url=http://me:pw@a/v1",), ["eval.url: a name, a password", "eval.api_key_env names"]),
        (("eval.url=http://a/v1/chat/completions",), ["leave /chat/completions out"]),
        (("eval.closed=likelihood",), ["eval.closed=likelihood needs the model here"]),
        (("eval.backend=transformers",), ["eval.url is of a server", "eval.served_model is of a server"]),
        (("eval.judge.url=http://a/v1",), ["eval.judge.served_model should name the model"]),
        (("eval.judge.served_model=j",), ["eval.judge.url should say where"]),
        (("eval.api_key_env=sk-123",), ["should be the name of an environment variable"]),
        (("eval.request.max_tokens=3",), ["eval.request.max_tokens is said by eval.generation.max_new_tokens"]),
        (("eval.request.temprature=1",), ["eval.request.temprature", "temperature"]),
        (("runs=[a]", "method=qlora4"), ["does not go with runs=", "method.quantization"]),
        (("hardware.processes=2", "eval.concurrency=0", "eval.retries=-1", "eval.timeout=0"),
         ["asked by one process", "eval.concurrency=0", "eval.retries=-1", "eval.timeout=0"]),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(
    arguments: tuple[str, ...], told: list[str], composed: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError) as error:
        composed(*SERVED, "eval.url=http://localhost:8000/v1", *arguments)
    for words_ in told:
        assert words_ in str(error.value)
    assert "me:pw" not in str(error.value) and "sk-123" not in str(error.value)


def test_a_server_that_is_not_there_leaves_nothing(command: Command, tmp_path: Path) -> None:
    done = command(*SERVED, "eval.url=http://localhost:9/v1")
    assert done.returncode == 1 and "eval.url=http://localhost:9/v1: no server answers there" in done.stderr
    assert not list(tmp_path.glob("outputs/*-server-*"))


def test_no_torch_is_loaded(command: Command, tmp_path: Path) -> None:
    code = "import sys, vlmft.run; from vlmft.worker import main; code = main(sys.argv[1:]); "
    code += "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys(); sys.exit(code)"
    with serving(lambda body, n: said("yes"), models=("lab/model-1",)) as chat:
        assert command(*SERVED, f"eval.url={chat.url}").returncode == 0
        (run,) = (tmp_path / "outputs").glob("model-1-server-*")
        for file in (*run.glob("predictions_*"), run / "result.json"):
            file.unlink()
        subprocess.run([sys.executable, "-c", code, str(run)], check=True, cwd=ROOT)
    assert len(list(run.glob("predictions_*"))) == 3


def test_a_word_to_end_is_heeded_while_it_waits(prepared: Prepared, tmp_path: Path) -> None:
    def slow(body: dict[str, Any], n: int) -> Any:
        if n:
            time.sleep(20)
        return said("yes")

    with serving(slow, models=("lab/model-1",)) as chat:
        process = prepared.start([TRAIN, *SERVED, f"eval.url={chat.url}", "eval.concurrency=2"], tmp_path)
        until = time.monotonic() + 60
        while len(chat.requests) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(30) == 130 and time.monotonic() - began < 10
    (run,) = (tmp_path / "outputs").glob("model-1-server-*")
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert len(read_predictions(next(run.glob(".predictions_*")))) == 1, "what was answered is kept"

"""vlmft ask: what a run says here is what it said in its evaluation, and what a conversation remembers."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import ROOT
from vlmft.chat.encode import Encoder
from vlmft.cli import main
from vlmft.data.load import load
from vlmft.data.question import Turn
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation import generate
from vlmft.schema import Config, Device, Generation, Hardware, Model, Task, read_config
from vlmft.status import Status
from vlmft.use import ask, trained
from vlmft.worker import Together, train

Composed = Callable[..., Config]
ON_CPU = Hardware(device=Device.cpu)
SMALL = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=16", "method.trainer.max_steps=2",
         "method.batch_size=4", "method.trainer.learning_rate=1e-2", "method.trainer.warmup_steps=0", "hardware=cpu",
         "eval.max_rows=48", "eval.generation.max_new_tokens=8")  # fmt: skip


@pytest.fixture(scope="module")
def run(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA on the tiny GLM-4.1V, evaluated on its own test set."""
    config, folder = composed(*SMALL), tmp_path_factory.mktemp("outputs") / "one"
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    train(config, folder, Status(folder))
    Together().evaluate(config, folder, config, Status(folder))
    return folder


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions_demo_ct.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def config(composed: Composed) -> Config:
    """Of a run that trains nothing."""
    return replace(composed(*SMALL), task=Task.eval)


@pytest.fixture(scope="module")
def loaded(config: Config) -> tuple[Any, Encoder]:
    """The model as it is."""
    return trained.load(Path("nowhere"), config, ON_CPU)


@pytest.fixture(scope="module")
def wearing(run: Path) -> tuple[Any, Encoder]:
    """The model that the run trained."""
    return trained.load(run, read_config(run / "config.yaml"), ON_CPU)


@pytest.fixture(scope="module")
def pictures(config: Config) -> list[str]:
    return list(dict.fromkeys(row.images[0] for row in load(config.dataset, "test", limit=48).questions))


@pytest.fixture
def talk(loaded: tuple[Any, Encoder]) -> ask.Conversation:
    return ask.Conversation(*loaded, Generation(max_new_tokens=8))


@pytest.fixture
def in_process(wearing: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command in this process: the model is the one that is loaded, and the environment stays."""
    monkeypatch.setattr(trained, "use_device", lambda device: None)
    monkeypatch.setattr(trained, "load", lambda *args: wearing)
    yield


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model says next, without a model; `shown` prompts are in the order they were asked."""
    replies: list[str] = []

    def said(model: Any, encoder: Encoder, rows: Any, settings: Generation) -> Iterator[dict[str, Any]]:
        raw, cut, _ = replies.pop(0).partition("…")
        asked.append(encoder.tokenizer.decode(rows[0].input_ids))
        yield {"raw": raw, "tokens": len(raw), "finish_reason": "length" if cut else "stop",
               "think_prefilled": encoder.think_prefilled}  # fmt: skip

    asked: list[str] = []
    monkeypatch.setattr(generate, "generate", said)
    monkeypatch.setattr(scripted, "asked", asked, raising=False)
    return replies


def shown() -> list[str]:
    return scripted.asked  # type: ignore[attr-defined,no-any-return]


@pytest.mark.slow
def test_a_run_says_here_what_it_said_in_its_evaluation(
    wearing: tuple[Any, Encoder], records: list[dict[str, Any]], in_process: None, run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for record in records[:4]:
        talk = ask.Conversation(*wearing, Generation(max_new_tokens=8))
        assert talk.ask(record["question"], record["images"]).raw == record["raw"]
    main(["ask", str(run), "--image", records[0]["images"][0], "--question", records[0]["question"], "--raw"])
    said = capsys.readouterr()
    assert said.out == records[0]["raw"] + "\n", "and the pipe has the reply alone"
    assert "model     tiny_glm41v on cpu, float32" in said.err and " tokens in 0." in said.err


def test_the_run_s_limits_hold(config: Config, loaded: tuple[Any, Encoder]) -> None:
    model, encoder = loaded
    assert not model.training
    assert encoder.style is config.model.answer_style
    assert encoder.processor.image_processor.size["longest_edge"] == 2 * 12544
    assert ask.settings_of(config).max_new_tokens == 8


def test_history_holds_what_was_answered_where_its_pictures_were_and_no_thoughts(
    talk: ask.Conversation, scripted: list[str], pictures: list[str]
) -> None:
    one, other = pictures[0], pictures[-1]
    scripted += ["<think>Let me see.</think><answer>left</answer>", "<answer>two</answer>", "<answer>no</answer>"]
    first = talk.ask("Which side?", [one])
    assert (first.answer, first.thought, first.status) == ("left", "Let me see.", "ok")
    assert first.thought_tokens == len(talk.encoder.tokenizer("Let me see.").input_ids)
    talk.ask("How many?")
    assert talk.ask("And here?", [other]).answer == "no"
    assert talk.pictures == [one, other]
    token = talk.encoder.image_token
    last = shown()[-1]
    assert "Let me see" not in last and last.count("<answer>left</answer>") == last.count("two") == 1
    before, after = last.index("Which side?"), last.index("And here?")
    assert token in last[:before] and token not in last[before : last.index("two")] and token in last[:after]
    assert last.index("two") < last.rindex(token) < after, "the second picture comes with the third question"
    assert last.startswith(shown()[0].split("Which side?")[0])


def test_what_is_no_answer_is_said_and_kept_only_where_it_is_text(talk: ask.Conversation, scripted: list[str]) -> None:
    scripted += ["<think>It may be…", "It is a long st…", "fine"]
    thinking = talk.ask("Why?")
    assert (thinking.answer, thinking.status, thinking.thought) == (None, "unclosed_think", "It may be")
    assert talk.turns == []
    cut = talk.ask("Why?")
    assert (cut.answer, cut.status) == (None, "truncated") and talk.turns == [Turn("Why?", "It is a long st")]
    assert talk.ask("Really?").answer == "fine" and "It is a long st" in shown()[-1]


def test_marks_say_where_pictures_stand(talk: ask.Conversation, scripted: list[str], pictures: list[str]) -> None:
    picture = pictures[0]
    scripted += ["yes"]
    talk.ask("Is <image> like <image> ?", [picture, picture])
    assert shown()[-1].count(talk.encoder.image_token) > 1
    for text, shown_with, message in (
        ("Is <image> it?", [], "has 1 <image> and comes with 0 pictures"),
        ("Is <image> it?", [picture] * 2, "has 1 <image> and comes with 2"),
        (" ", [picture], "the question is empty"),
        (f"What is {talk.encoder.image_token} ?", [], "must not contain"),
    ):
        with pytest.raises(DataError, match=message):
            talk.ask(text, shown_with)
    assert len(talk.turns) == 1 and len(talk.pictures) == 2, "as before"
    with pytest.raises(DataError, match="reads text only"):
        text_only = type("TextOnly", (), {"image_token": None})()
        ask.Conversation(None, text_only, Generation()).ask("What?", [picture])


def test_lines_are_questions_and_commands(
    talk: ask.Conversation, scripted: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    picture = pictures[0]
    lines = ["", f"/image '{picture}'", "/image nowhere.png", "/hm", "Which organ?", "/thoughts", "And?", "/new", "So?",
             "/quit", "Never asked"]  # fmt: skip
    scripted += ["<think>Hidden.</think><answer>liver</answer>", "<think>Seen.</think><answer>no</answer>", "ok", "x"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    ask.interact(talk, [picture])
    said = capsys.readouterr()
    assert said.out.splitlines() == ["liver", "Seen.", "no", "ok"] and scripted == ["x"]
    assert "thought of" in said.err and "/thoughts shows it" in said.err and "(thoughts are shown)" in said.err
    assert "(2 pictures for the next question)" in said.err and "nowhere.png is no picture here" in said.err
    assert "/hm means nothing here: /image PATH" in said.err
    first, second, third = shown()
    assert first.count("<|begin_of_image|>") == 2 == second.count("<|begin_of_image|>")
    assert "Which organ?" in second and "liver" in second and "Which organ?" not in third and "<|begin" not in third


def test_settings_are_the_run_s_unless_they_are_given(config: Config) -> None:
    drawn = ask.settings_of(config, 3, 0.7, 0.9)
    assert (drawn.max_new_tokens, drawn.do_sample, drawn.temperature, drawn.top_p) == (3, True, 0.7, 0.9)
    sampled = replace(config, eval=replace(config.eval, generation=Generation(do_sample=True, temperature=2.0)))
    assert ask.settings_of(sampled).do_sample and not ask.settings_of(sampled, temperature=0).do_sample
    for given, message in (
        ((0, None, None), "at least 1"),
        ((None, -1.0, None), "0 .the likeliest"),
        ((None, None, 0.5), "--top-p is of sampling"),
        ((None, 1.0, 1.5), "at most 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            ask.settings_of(config, *given)


def test_the_same_seed_draws_the_same_tokens(loaded: tuple[Any, Encoder], config: Config) -> None:
    settings = ask.settings_of(config, 12, 5.0)
    said = []
    for number in (1, 1, 2):
        trained.seed(number)
        said.append(ask.Conversation(*loaded, settings).ask("Which organ is shown?").raw)
    assert said[0] == said[1] != said[2]


@pytest.mark.slow
def test_demo_shows_gold_and_reply_with_the_verdict(
    run: Path, in_process: None, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["ask", str(run), "--demo"])
    said = capsys.readouterr().out
    seen = [line.split()[1] for line in said.splitlines() if line.startswith("picture")]
    assert len(set(seen)) == len(seen) == ask.DEMO and set(seen) <= {r["images"][0] for r in records}
    right = said.count("(right)")
    assert f"{right} of {ask.DEMO} right by the protocol normalized on demo_ct" in said
    golds = {(record["question"], record["gold"]) for record in records}
    lines = said.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("question"):
            assert (line[10:], lines[number + 1][10:]) in golds
    main(["ask", str(run), "--demo", "--seed", "1"])
    assert capsys.readouterr().out != said


@pytest.mark.slow
def test_what_can_be_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: Any) -> str:
        with pytest.raises(SystemExit):
            main(["ask", *map(str, arguments)])
        return capsys.readouterr().err

    adapter = Path(shutil.copytree(run / "final", tmp_path / "mine"))
    assert trained.config_of(run / "final")[0] == run, "the run that it is of says how it is asked"
    assert "name --model, an option of conf/model" in refused(adapter, "--question", "Why?")
    where, config = trained.config_of(adapter, "tiny_glm41v")
    assert where.name.startswith("mine-eval-") and config.init_from == str(adapter)
    assert "says of no set" in refused(adapter, "--model", "tiny_glm41v", "--demo")
    assert "tiny_glm" in refused(adapter, "--model", "tiny_glm", "--question", "Why?")
    assert "is a run and has its own" in refused(run, "--model", "tiny_glm41v")
    assert "no run directory (config.yaml), no adapter" in refused(tmp_path, "--question", "Why?")
    assert "leave out --question" in refused(run, "--demo", "--question", "Why?")
    assert "no.png is no picture here" in refused(run, "--image", "no.png", "--question", "Why?")
    (tmp_path / "half").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "half")
    assert "its training is not done" in refused(tmp_path / "half", "--question", "Why?")


@pytest.mark.slow
def test_an_adapter_and_a_model_as_it_is_are_asked(run: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    """The adapter says what its run said, and the model without it something else."""
    adapter = Path(shutil.copytree(run / "final", tmp_path / "mine"))
    where, config = trained.config_of(adapter, "tiny_glm41v")
    base = replace(read_config(run / "config.yaml"), task=Task.eval)
    said = []
    for folder, of in ((where, config), (tmp_path / "base", base)):
        talk = ask.Conversation(*trained.load(folder, of, ON_CPU), Generation(max_new_tokens=8))
        said.append(talk.ask(records[0]["question"], records[0]["images"]).raw)
    assert said[0] == records[0]["raw"] != said[1]


def test_a_text_model_is_asked_without_a_picture(composed: Composed, tmp_path: Path) -> None:
    config = replace(composed("model=tiny_deepseek_r1", "hardware=cpu"), task=Task.eval)
    talk = ask.Conversation(*trained.load(tmp_path, config, ON_CPU), Generation(max_new_tokens=4))
    reply = talk.ask("Which organ?")
    assert reply.tokens == 4 and reply.status == "unclosed_think", "its template begins with a thought"
    assert reply.thought == reply.raw.strip() and talk.turns == []


@pytest.mark.slow
def test_by_command(run: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "my picture.png"
    Image.open(records[0]["images"][0]).save(file)
    lines = f"/image {file}\n{records[0]['question']}\n"
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", "from vlmft.cli import main; main()", "ask", str(run), "--raw", "--device", "cpu"],
        input=lines, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == records[0]["raw"] + "\n"
    told = done.stderr.splitlines()
    assert told[0] == "model     tiny_glm41v on cpu, float32" and told[1] == "(1 picture for the next question)"
    assert len(told) == 3 and " in " in told[2], "and the libraries say nothing"


def test_a_model_folder_says_how_it_is_asked(tiny: Model, tmp_path: Path) -> None:
    from vlmft.models.load import source

    copy = Path(shutil.copytree(source(tiny), tmp_path / "mine"))
    _, config = trained.config_of(copy, "tiny_glm41v")
    assert (config.model.path, config.model.max_pixels) == (str(copy), 12544) and config.init_from is None

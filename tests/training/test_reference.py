"""What the reference says is asked once: kept by content, gone on with after a kill, waited for by others."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.dpo_trainers import parts, some_pairs
from vlmft.chat.encode import Pair
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.models.load import load_model
from vlmft.schema import Algorithm, Config
from vlmft.training import reference

BASE = ("model=tiny_glm41v", "dataset=demo", "method=dpo", "method.batch_size=2", "hardware=cpu",
        "hardware.micro_batch=2")  # fmt: skip


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    from PIL import Image

    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (56, 56), (80 * number, 10, 200)).save(path)
    return some_pairs(paths)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A reference folder of the test's own."""
    monkeypatch.setattr(reference, "cache_folder", lambda: tmp_path)
    return tmp_path / "reference"


def ask(config: Config, questions: list[Question], folder: Path) -> list[Any]:
    encoder, decisions = parts(config)
    rows = list(encoder.rows(questions, Algorithm.dpo))
    model = load_model(config.model, "float32")
    return reference.with_reference(config, model, rows, encoder, decisions, folder, lambda done: None)


def taken_away(config: Config, questions: list[Question], folder: Path, kept: Path) -> tuple[list[Any], Path, str]:
    """What was asked, and the file that it was kept in, with what stood there: it is gone."""
    whole = ask(config, questions, folder)
    (file,) = kept.glob("*.jsonl")
    text = file.read_text()
    file.unlink()
    return whole, file, text


def digest(config: Config, questions: list[Question]) -> str:
    encoder, decisions = parts(config)
    return reference._digest(config, list(encoder.rows(questions, Algorithm.dpo)), decisions)  # type: ignore[arg-type]


def test_a_second_run_asks_nothing(
    questions: list[Question], composed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(composed(*BASE), questions, tmp_path)
    assert all(isinstance(pair, Pair) and pair.reference for pair in first)
    monkeypatch.delattr(reference, "log_probabilities")
    other = composed(*BASE, "method.trainer.beta=0.5", "method.trainer.learning_rate=1e-3", "seed=3",
                     "method.peft.r=4", "method.trainer.loss_type=[ipo]")  # fmt: skip
    assert ask(other, questions, tmp_path) == first


def test_what_decides_the_values_is_in_the_key(questions: list[Question], composed: Callable[..., Config]) -> None:
    from dataclasses import replace

    from PIL import Image

    said = questions[0].rejected
    assert said is not None
    other = [replace(questions[0], rejected=replace(said, answer="other")), *questions[1:]]
    found = [
        digest(composed(*BASE), questions),
        digest(composed(*BASE), other),
        digest(composed(*BASE), questions[:-1]),
    ]
    for more in ("method.packing=none", "hardware.micro_batch=1", "model.dtype=bfloat16", "model=tiny_qwen3vl",
                 "model.answer_style=answer"):  # fmt: skip
        found.append(digest(composed(*BASE, more), questions))
    before = digest(composed(*BASE), questions)
    Image.new("RGB", (56, 56), (1, 2, 3)).save(questions[0].images[0])
    assert before == found[0]
    found.append(digest(composed(*BASE), questions))
    assert len(set(found)) == len(found)


def test_a_computation_that_was_killed_goes_on(
    questions: list[Question], composed: Callable[..., Config], tmp_path: Path, own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = composed(*BASE)
    whole, file, text = taken_away(config, questions, tmp_path, own_cache)
    lines = text.splitlines(keepends=True)
    (own_cache / f".{file.name}").write_text("".join(lines[:2]) + lines[2][:9])
    asked: list[int] = []

    def counted(model: Any, encoder: Any, packs: Any, real: Any = reference.log_probabilities) -> Any:
        asked.append(sum(len(pack.rows) for pack in packs))
        return real(model, encoder, packs)

    monkeypatch.setattr(reference, "log_probabilities", counted)
    assert ask(config, questions, tmp_path) == whole and 0 < sum(asked) < len(questions)
    assert sorted(json.loads(line)[0] for line in file.read_text().splitlines()) == list(range(len(questions)))
    assert not (own_cache / f".{file.name}").exists()


def test_another_run_that_computes_it_is_waited_for(
    questions: list[Question], composed: Callable[..., Config], tmp_path: Path, own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = composed(*BASE)
    whole, file, text = taken_away(config, questions, tmp_path, own_cache)
    monkeypatch.delattr(reference, "log_probabilities")

    def finish(lock: Any) -> None:
        time.sleep(0.5)
        file.write_text(text)
        lock.close()

    held = open(file.with_suffix(".lock"), "w")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    thread = threading.Thread(target=finish, args=(held,))
    thread.start()
    assert ask(config, questions, tmp_path) == whole
    thread.join()


def test_what_is_no_number_is_not_kept(
    questions: list[Question], composed: Callable[..., Config], tmp_path: Path, own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        reference,
        "log_probabilities",
        lambda model, encoder, packs: [float("nan")] * 2 * sum(len(p.rows) for p in packs),
    )
    with pytest.raises(DataError, match=r"set:[0-9]: the reference's log-probabilities are"):
        ask(composed(*BASE), questions, tmp_path)
    assert not [file for file in own_cache.glob("*.jsonl") if file.name[0] != "."]

"""Training on a set that is read while training: every row once an epoch, whoever asks, and resumable to the bit."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from tests.test_run import only_run
from vlmft.chat.encode import Encoder
from vlmft.check import preflight
from vlmft.data import leakage
from vlmft.data.load import load
from vlmft.errors import DataError
from vlmft.evaluation import evaluate, floors
from vlmft.hardware import decide
from vlmft.identity import run_name
from vlmft.models.load import load_model, load_processor
from vlmft.plan import row_sizes
from vlmft.schema import BadRows, Config
from vlmft.training import fine_tuning
from vlmft.training.callbacks import checksums
from vlmft.training.streamed import STORED, Stream, Streamed, read_through

SIZES = (1, 5, 2, 7, 3, 1, 4, 6, 1, 1, 9, 3)  # questions about each picture
RUN = ("model=tiny_glm41v", "dataset=conversations", "dataset.streaming=true", "dataset.buffer_size=12",
       "method=full", "method.batch_size=4", "hardware=cpu", "hardware.micro_batch=2")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43 questions about 12 pictures, as JSON lines; every id is there more than once."""
    place = tmp_path_factory.mktemp("set")
    rows = []
    for image, size in enumerate(SIZES):
        colours = Image.new("RGB", (30, 30), (20 * image, 255 - 20 * image, 90))
        colours.paste((255, 255, 0), (image, 5, image + 12, 20))
        colours.save(place / f"{image}.png")
        rows += [_row(image, f"What is {n}?", f"thing {image} {n}") for n in range(size)]
    (place / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "test.json").write_text(json.dumps([_row(3, "What is 2?", "thing 3 2"), _row(5, "Else?", "no")]))
    return place


def _row(image: int, asked: str, said: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    long = "longer than what is read of a file at a time " * 100
    return {"id": image, "image": f"{image}.png", "conversations": turns, "note": long}


@pytest.fixture(scope="module")
def config(composed: Callable[..., Config], folder: Path) -> Callable[..., Config]:
    return lambda *overrides: composed(*RUN, f"paths.conversations={folder}", *overrides)


@pytest.fixture(scope="module")
def encoder(config: Callable[..., Config]) -> Encoder:
    return Encoder(load_processor(config().model), config().model.answer_style, {0, 7, 9})


def found(config: Config, encoder: Encoder, run: Path) -> Stream:
    return read_through(config.dataset, config.method, encoder, run, run / "trained_on.jsonl")


def epochs(of: Stream, encoder: Encoder, micro_batches: int = 2, **changed: int) -> Streamed:
    settings = {"batch_size": 4, "most": 3, "max_tokens": 4096, "seed": 0} | changed
    return Streamed(of, encoder, micro_batches=micro_batches, **settings)


def said(packs: list[Any]) -> list[str]:
    """What is answered in a micro-batch; each row of the set has another answer."""
    return [
        str([label for label in row.labels if label >= 0]) for pack in packs for row in pack.rows if row.answer_tokens
    ]


def test_every_row_comes_once_an_epoch(config: Callable[..., Config], encoder: Encoder, tmp_path: Path) -> None:
    plan = epochs(found(config(), encoder, tmp_path), encoder)
    assert (plan.steps, len(plan), plan.questions(12)) == (11, 22, 43 + 4)
    first, second = ([said(plan[n]) for n in range(start, start + 22)] for start in (0, 22))
    everything = Counter(name for part in first for name in part)
    assert len(everything) == 43 and set(everything.values()) == {1}
    assert Counter(name for part in second for name in part) == everything and first != second
    assert all(len(first[n]) + len(first[n + 1]) == 4 for n in range(0, 20, 2))
    assert {row.question for pack in plan[0] for row in pack.rows} <= {f"conversations:{n}" for n in range(12)}
    assert all(plan[n] for n in range(22)), "no micro-batch is empty, the last step's neither"
    assert 1 < plan.questions_per_pack() <= 2, "at most batch_size / micro_batches share a row"


def test_the_order_does_not_depend_on_who_asks(config: Callable[..., Config], encoder: Encoder, tmp_path: Path) -> None:
    of = found(config(), encoder, tmp_path)
    plan = epochs(of, encoder)
    order = [said(plan[n]) for n in range(44)]
    assert [said(epochs(of, encoder)[n]) for n in (30, 7, 43)] == [order[n] for n in (30, 7, 43)]
    assert [said(plan[n]) for n in (5, 6, 3, 25)] == [order[n] for n in (5, 6, 3, 25)], "backwards too"
    assert [said(pickle.loads(pickle.dumps(plan))[9])] == [order[9]]
    whole = epochs(of, encoder, micro_batches=1)
    assert [sorted(said(whole[n])) for n in range(22)] == [sorted(order[2 * n] + order[2 * n + 1]) for n in range(22)]
    assert [said(epochs(of, encoder, seed=1)[n]) for n in range(22)] != order[:22]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_workers_read_each_row_once(
    workers: int, config: Callable[..., Config], encoder: Encoder, tmp_path: Path
) -> None:
    of = found(config(), encoder, tmp_path)
    plan, alone = epochs(of, encoder), epochs(of, encoder)
    said(plan[3])  # a file that is open when the workers are forked
    got: list[list[str]] = []
    for items in (range(8, 44), range(22)):  # a resume and the next epoch, and what is gone back to
        got += DataLoader(plan, batch_size=1, sampler=items, num_workers=workers, collate_fn=_said)
    assert got == [said(alone[n]) for n in (*range(8, 44), *range(22))]


def _said(items: list[Any]) -> list[str]:
    return said(items[0])


def test_what_skips_is_not_encoded(
    config: Callable[..., Config], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = epochs(found(config(), encoder, tmp_path), encoder)
    asked: list[Any] = []
    monkeypatch.setattr(
        Stream, "encode", lambda *args, of=Stream.encode: asked.extend(args[2]) or of(*args)
    )  # fmt: skip
    assert said(plan[18])
    assert len(asked) == 4


@pytest.mark.parametrize("policy", ["drop", "shrink_image", "refuse"])
def test_rows_that_are_too_long(
    policy: str, config: Callable[..., Config], encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    long = [_row(0, "Why? " * 60, "because"), _row(1, "What?", "a" * 1500)]
    rows = [*long, *(json.loads(line) for line in (folder / "train.json").read_text().splitlines())]
    for n in range(12):
        (tmp_path / f"{n}.png").write_bytes((folder / f"{n}.png").read_bytes())
    (tmp_path / "train.json").write_text(json.dumps(rows))
    chosen = config(f"paths.conversations={tmp_path}", f"dataset.over_long={policy}", "method.max_row_tokens=100")
    if policy != "drop":
        with pytest.raises(DataError, match=r"2 rows have more than method.max_row_tokens=100.*conversations:row 1 \("):
            found(chosen, encoder, tmp_path)
        return
    of = found(chosen, encoder, tmp_path)
    assert (of.over_long, of.questions, of.total) == (2, 45, 43)
    plan = epochs(of, encoder, max_tokens=100)
    assert len({name for n in range(len(plan)) for name in said(plan[n])}) == 43


def test_bad_rows_and_the_first_rows(config: Callable[..., Config], encoder: Encoder, folder: Path) -> None:
    chosen = config()
    file = folder / "broken.json"
    lines = (folder / "train.json").read_text().splitlines()
    file.write_text("\n".join([*lines[:2], "{", *lines[2:30], json.dumps(_row(77, "a?", "b")), *lines[30:]]))
    dataset = replace(chosen.dataset, splits={"train": file.name}, max_rows=35)
    run = folder / "run"
    run.mkdir()
    with pytest.raises(DataError, match=r"1 of the first 12 rows cannot be used(.|\n)*row 3: not JSON"):
        found(replace(chosen, dataset=dataset), encoder, run)
    assert not list(run.iterdir()), "nothing half done is left"
    dropping = replace(chosen, dataset=replace(dataset, bad_rows=BadRows.drop))
    of = found(dropping, encoder, run)
    assert (of.questions, of.dropped, of.total) == (35, 2, 35)
    again = found(dropping, encoder, run)
    assert replace(again, rows=[], first=[]) == replace(of, rows=[], first=[])
    assert (again.rows, again.first) == (of.rows, of.first)


def test_answers_are_trained_and_validated_in_one_form(
    config: Callable[..., Config], encoder: Encoder, tmp_path: Path
) -> None:
    rows = [_row(n, "What is it?", answer) | {"image": None} for n, answer in enumerate(["plain film", "no", "film"])]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    chosen = (f"paths.conversations={tmp_path}", "dataset.validation=validation")
    for more, answer, renamed in (((), "plain film", 0), (("dataset.normalize_terms=true",), "x-ray", 1)):
        run = tmp_path / str(renamed)
        run.mkdir()
        of = found(config(*chosen, *more), encoder, run)
        split, plan = of.split(), epochs(of, encoder)
        assert (of.renamed, split.train[0].answer, split.validation[0].answer) == (renamed, answer, answer)
        trained = [row for n in range(len(plan)) for pack in plan[n] for row in pack.rows if row.answer_tokens]
        assert sum(answer in encoder.tokenizer.decode(row.input_ids) for row in trained) == 1


def test_a_file_that_changes_meanwhile_stops_training(
    config: Callable[..., Config], encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    lines = (folder / "train.json").read_text().splitlines(keepends=True)
    (folder / "other.json").write_text("".join(lines))
    chosen = replace(config(), dataset=replace(config().dataset, splits={"train": "other.json"}))
    plan = epochs(found(chosen, encoder, tmp_path), encoder)
    (folder / "other.json").write_text("".join(lines[:20]))
    with pytest.raises(DataError, match=r"has changed since.*ends before step 6 of an epoch of 11.*force=true"):
        plan[10]


def test_steps_spare_the_rest_of_the_file(config: Callable[..., Config], encoder: Encoder, tmp_path: Path) -> None:
    whole = found(config("method.max_questions_per_row=2"), encoder, tmp_path)
    chosen = config("method.max_questions_per_row=2", "method.trainer.max_steps=3")
    (tmp_path / "part").mkdir()
    part = found(chosen, encoder, tmp_path / "part")
    assert part.questions == 36 and whole.questions == 43, "3 steps of 4, a buffer of 12, and whole buffers are read"
    one, other = (epochs(of, encoder, most=2) for of in (whole, part))
    assert [said(one[n]) for n in range(6)] == [said(other[n]) for n in range(6)], "and the same rows come"


def test_what_was_trained_on_is_known(
    config: Callable[..., Config], encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    chosen = config()
    found(chosen, encoder, tmp_path)
    test = load(chosen.dataset, "test").questions
    entries = list(leakage.each(tmp_path / "trained_on.jsonl"))
    assert sum(len(entry["questions"]) for entry in entries) == 43
    whole = leakage.trained_on(load(chosen.dataset, "train").questions)
    (counts,) = leakage.audit(entries, test).counts.values()
    (expected,) = leakage.audit(whole, test).counts.values()
    ids = {"same_id": counts["same_id"]}  # the ids of a stream are the rows' own
    assert counts == expected | ids and counts["same_pair"] == 1 and counts["same_image"] == 2


def test_evaluation_check_and_plan_do_not_hold_the_set(
    config: Callable[..., Config], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmft.models.load import load_config

    chosen = config()
    test = load(chosen.dataset, "test").questions
    notes = floors.learnt(load(chosen.dataset, "train").questions, test)
    whole = load

    def refused(spec: Any, split: str, **keys: Any) -> Any:
        assert split != "train", "the training rows are read whole"
        return whole(spec, split, **keys)

    for module in (evaluate, preflight.read_parts.__globals__):
        monkeypatch.setitem(module if isinstance(module, dict) else vars(module), "load", refused)
    assert floors.learnt(evaluate.training_questions(chosen.dataset)(), test) == notes
    preflight.before_training(chosen)
    assert "43 training and 2 test questions are in order" in capsys.readouterr().out
    assert row_sizes(chosen, load_config(chosen.model)).said.startswith("12 of conversations")


def test_the_stream_is_part_of_the_name(config: Callable[..., Config]) -> None:
    names = [run_name(config(*more)) for more in ((), ("dataset.buffer_size=13",), ("dataset.streaming=false",))]
    assert len(set(names)) == 3
    assert run_name(config("dataset.streaming=false", "dataset.buffer_size=13")) == names[2]


class Stop(TrainerCallback):
    """What a kill is for the next start: the run ends after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_in_the_same_weights(
    workers: int, config: Callable[..., Config], encoder: Encoder, tmp_path: Path
) -> None:
    """Stopped in the second epoch, by a start that reads anew and one that has read: the same weights, bit for bit."""
    chosen = config(
        "method.trainer.num_train_epochs=2", "method.trainer.learning_rate=1e-3", "method.trainer.save_steps=3",
        "dataset.max_rows=19",
        f"method.trainer.dataloader_num_workers={workers}", "method.max_questions_per_row=3",
    )  # fmt: skip

    def train(run: Path, *callbacks: TrainerCallback) -> tuple[dict[str, Any], dict[str, int]]:
        run.mkdir(exist_ok=True)
        model = load_model(chosen.model, "float32")
        of = found(chosen, encoder, run)
        summary = fine_tuning.train(
            chosen, model=model, encoder=encoder, rows=of.rows, validation=[], run=run, callbacks=callbacks,
            decisions=decide(chosen.model, chosen.method, chosen.hardware), stream=of,
        )  # fmt: skip
        return summary, checksums(model)

    summary, expected = train(tmp_path / "undisturbed")
    assert (summary["steps"], summary["questions"]) == (10, 38)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Stop(8))
    assert fine_tuning.checkpoints.newest(tmp_path / "run").name == "checkpoint-6"  # type: ignore[union-attr]
    summary, weights = train(tmp_path / "run")
    assert (summary["steps"], summary["questions"]) == (10, 38) and weights == expected


def test_the_command_trains_and_evaluates_a_streamed_set(command: Any, folder: Path, tmp_path: Path) -> None:
    arguments = [
        *RUN, f"paths.conversations={folder}", f"dataset.validation={folder / 'held_out.json'}",
        "method.trainer.num_train_epochs=1", "method.trainer.learning_rate=1e-3", "eval.generation.max_new_tokens=4",
    ]  # fmt: skip
    (folder / "held_out.json").write_text(json.dumps([_row(2, "Where?", "here")]))
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "43 questions (conversations), streamed and shuffled in 12" in done.stdout
    assert "1 (image, question, answer) of 2 as well" in done.stdout, "leakage is told"
    run = only_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    assert (result["train"]["steps"], result["train"]["questions"]) == (11, 43)
    assert result["state"] == "done" and result["evaluations"]["conversations"]["leakage"]
    assert (run / STORED).is_file() and (run / "final" / "model.safetensors").is_file()

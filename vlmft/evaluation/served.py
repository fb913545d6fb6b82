"""What a server's model answers on test sets: the questions as messages with their pictures, the replies as records.

Questions, records, floors and scores are those of a model that is loaded here. Importing this file imports no torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmft.chat import prompts
from vlmft.data import images
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.evaluation import floors, results
from vlmft.evaluation.ablations import PASSES, without_their_pictures
from vlmft.evaluation.evaluate import chosen_sets, questions_of, training_questions, wanted
from vlmft.evaluation.parts import Parts
from vlmft.evaluation.predictions import answer_line, predictions_file
from vlmft.evaluation.server import Server, answering, ask_all
from vlmft.schema import AnswerStyle, Config, Eval, Generation
from vlmft.status import Status

_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_EXIF_ORIENTATION = 0x0112
_PICTURES = 64  # held as text; questions about one picture follow each other


def evaluate(run: Path, config: Config, status: Status) -> None:
    """Have the server answer what is missing of the sets in the run's folder, and score it, set by set.

    Raises DataError where the server refuses, or does not answer; what it has answered by then is kept.
    """
    sets = chosen_sets(config.eval, config.dataset)
    hashes = wanted(run.name, sets, config.eval)
    generate, rescore = results.pending(run, hashes, config.eval.protocols)
    for name in rescore:
        results.score_set(run, name, config.eval.protocols, hashes[name])
    for name in generate:
        set_, _, passed = name.partition(".")
        loaded = questions_of(sets[set_], config.eval)
        shown = without_their_pictures(loaded.questions, passed) if passed in PASSES else loaded.questions
        of_test = config.eval.split == Eval.split
        notes = floors.learnt(training_questions(sets[set_])(), loaded.questions) if of_test else []
        status.phase(f"evaluating {name}", total=len(loaded.questions))
        predict(
            answering(config.eval), loaded.questions, shown,
            {**fields(config.model.answer_style, config.eval.generation), **config.eval.request},
            config.model.answer_style, predictions_file(run, name), hashes[name], status.advance, notes,
        )  # fmt: skip
        results.score_set(
            run, name, config.eval.protocols, hashes[name], dropped_rows=len(loaded.dropped), shrunk_rows=0
        )


def fields(style: AnswerStyle, settings: Generation) -> dict[str, Any]:
    """What every request says of how to generate."""
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else {"temperature": 0}
    said = {key: value for key, value in drawn.items() if value is not None}
    return {"max_tokens": prompts.token_limit(style, settings)} | said


def predict(
    server: Server,
    questions: Sequence[Question],
    shown: Sequence[Question],
    said: dict[str, Any],
    style: AnswerStyle,
    file: Path,
    generation: str,
    on_progress: Callable[[int], None],
    notes: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Have every question answered, and return the records in the order of `questions`.

    `shown` are the questions with the pictures that they are asked with, and `said` the fields of every request. Each
    record is on disk as soon as its reply is there. Raises DataError as `ask_all`, and for a picture that cannot be
    read.
    """
    parts = Parts(file, generation)
    answered = parts.gather(question.id for question in questions)
    on_progress(len(answered))
    first: dict[tuple[str, ...], int] = {}
    todo = [number for number, question in enumerate(questions) if question.id not in answered]
    todo.sort(key=lambda number: first.setdefault(shown[number].images, number))
    number_of = {questions[number].id: number for number in todo}

    def asked() -> Iterator[tuple[str, dict[str, Any]]]:
        for number in todo:
            yield questions[number].id, {"messages": messages(shown[number], style), **said}

    with open(parts.own, "a", encoding="utf-8") as out:

        def keep(id: str, reply: dict[str, Any]) -> None:
            number = number_of[id]
            out.write(answer_line(questions[number], generation, reply, notes[number] if notes else None))
            out.flush()
            answered.add(id)
            on_progress(len(answered))

        ask_all(server, asked(), keep)
    return parts.put_together([question.id for question in questions])


def messages(question: Question, style: AnswerStyle) -> list[dict[str, Any]]:
    """The question as it is asked of a model here, in OpenAI's form: pictures as data URLs, words alone as a string.

    Raises DataError where its text has not as many image places as it has pictures.
    """
    out, pictures = [], list(question.images)
    for message in prompts.messages(question, style)[:-1]:
        parts = message["content"]
        if not any(part["type"] == "image" for part in parts):
            out.append({"role": message["role"], "content": "".join(part["text"] for part in parts)})
            continue
        content = []
        for part in parts:
            if part["type"] == "image" and pictures:
                content.append({"type": "image_url", "image_url": {"url": data_url(pictures.pop(0))}})
            elif part["type"] == "image":
                raise DataError(f"question {question.id} of {question.set} has more image places than pictures")
            else:
                content.append(part)
        out.append({"role": message["role"], "content": content})
    if pictures:
        raise DataError(
            f"question {question.id} of {question.set}: {len(question.images)} images, but {len(pictures)} of them "
            "have no place in its text"
        )
    return out


@lru_cache(maxsize=_PICTURES)
def data_url(path: str) -> str:
    """The picture as a data URL: the file's own bytes where every reader sees the same in them, else drawn anew.

    Drawn anew, as a PNG of what a model here is shown, is another format, a turned, palette or transparent picture,
    and a film. Raises DataError where it cannot be read.
    """
    from PIL import Image

    images.size(path)  # which says what is wrong with it
    with Image.open(path) as image:
        kind = _AS_THEY_ARE.get(image.format or "")
        if (
            kind is None
            or image.mode not in ("RGB", "L")
            or "transparency" in image.info
            or getattr(image, "n_frames", 1) > 1
            or image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        ):
            kind = None
    if kind is None:
        drawn = io.BytesIO()
        images.load((path, None)).save(drawn, format="PNG")
        return _url("image/png", drawn.getvalue())
    return _url(kind, Path(path).read_bytes())


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

"""A sample of the questions for the page: pictures as thumbnails, and what each run answered, judged.

All runs are shown on the same questions, so that their answers stand side by side.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.evaluation.answer_kinds import OK
from vlmft.evaluation.answers import parse_record
from vlmft.evaluation.protocols import PROTOCOLS, judge
from vlmft.report.scan import Run

QUESTIONS = 60  # of a set
QUESTIONS_IN_ALL = 480  # keeps the page below 8 MB, however many sets there are
RUNS = 12
PICTURES = 4  # of one question
LONGEST_TEXT = 400  # characters of a question or an answer; a report or a train of thought is cut
EDGE, QUALITY = 160, 60  # of a thumbnail: pixels, JPEG

Record = Mapping[str, Any]


def gallery(
    rows: Sequence[tuple[str, Run]], sets: Sequence[str], protocols: Sequence[str], *, images: bool = True
) -> dict[str, Any]:
    """The sample in plain types: `runs` (name, label), `sets`, `protocols`, `pictures` (JPEG in base64, None where a
    file cannot be read), `questions`, `asked`, the number of questions of each set that were drawn from, and
    `scored_runs`, the number of runs.

    Of a question, `answers` has by run (its place in `runs`, as text) the answer, or where none could be read the whole
    reply, and per protocol the verdict: "right", "wrong", or the status of what is unparsed. Raises as `judge`.
    """
    scored = [(label, run) for label, run in rows if run.evaluations]
    shown = spread(scored, RUNS)
    found: dict[str, Any] = {
        "runs": [{"name": run.name, "label": label} for label, run in shown],
        "sets": list(sets),
        "protocols": list(protocols),
        "scored_runs": len(scored),
        "images": images,
        "pictures": [],
        "questions": [],
        "asked": {},
    }
    places: dict[str, int] = {}  # of each picture in `pictures`
    most = max(1, min(QUESTIONS, QUESTIONS_IN_ALL // max(1, len(sets))))
    for number, name in enumerate(sets):
        said = [_by_id(run.predictions(name)) if name in run.evaluations else {} for _, run in shown]
        found["asked"][name] = len({key for answers in said for key in answers})
        for key in _drawn(said, most, name):
            record = next(answers[key] for answers in said if key in answers)
            pictures = list(record["images"][:PICTURES]) if images else []
            for picture in pictures:
                if picture not in places:
                    places[picture] = len(found["pictures"])
                    found["pictures"].append(thumbnail(picture))
            answers = {str(run): _answer(of[key], protocols) for run, of in enumerate(said) if key in of}
            found["questions"].append(
                _question(record) | {"set": number, "pictures": [places[p] for p in pictures], "answers": answers}
            )
    return found


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly over them, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def thumbnail(file: str) -> str | None:
    """The picture as a small JPEG in base64, without what its file says besides; None where it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            whole = image.convert("RGB") if image.mode == "P" else image  # a palette cannot be shrunk smoothly
            whole.thumbnail((EDGE, EDGE))
            small = ImageOps.exif_transpose(whole).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # SyntaxError: Pillow's, of a broken PNG
        return None
    small.info.clear()  # a comment, which may name a patient, would be saved again
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _by_id(records: Iterable[Record]) -> dict[str, Record]:
    return {record["id"]: record for record in records}


def _drawn(said: Sequence[Mapping[str, Record]], most: int, name: str) -> list[str]:
    """Questions that every run answered, or where there are none, that any did; in their order in the file."""
    answered = [answers for answers in said if answers]
    order = list(dict.fromkeys(key for answers in answered for key in answers))
    shared = [key for key in order if all(key in answers for answers in answered)] or order
    chosen = set(random.Random(f"gallery {name}").sample(range(len(shared)), min(most, len(shared))))
    return [key for place, key in enumerate(shared) if place in chosen]


def _question(record: Record) -> dict[str, Any]:
    facts = (str(value) for value in record.get("facts", {}).values())
    return {
        "id": record["id"],
        "question": _cut(record["question"]),
        "gold": _cut(record["gold"]),
        "type": record["answer_type"],
        "options": [_cut(option) for option in record.get("options", ())],
        "facts": _cut(", ".join(filter(None, facts))),
    }


def _answer(record: Record, protocols: Sequence[str]) -> dict[str, Any]:
    read = parse_record(record)
    return {
        "said": _cut(read.text or record["raw"]),
        "verdicts": [_verdict(record, protocol) for protocol in protocols],
    }


def _verdict(record: Record, protocol: str) -> str:
    if protocol not in PROTOCOLS:
        return "unknown protocol"
    verdict = judge(record, protocol)
    if verdict.status != OK:
        return verdict.status
    return "right" if verdict.correct else "wrong"


def _cut(text: Any) -> str:
    whole = str(text).strip()
    return whole if len(whole) <= LONGEST_TEXT else whole[:LONGEST_TEXT].rstrip() + " […]"

"""The child process of `task=check`: python -m vlmft.check CONFIG FOLDER KEY. It loads the processor, not the model."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vlmft.chat.prompts import token_limit
from vlmft.check import findings, tokens
from vlmft.check.page import page
from vlmft.check.parts import TRAIN, Part, add_findings, read_parts
from vlmft.check.preflight import PAGE, RESULT
from vlmft.data import leakage
from vlmft.errors import DataError, tell
from vlmft.files import write_json, write_text
from vlmft.schema import Config, read_config


def result_of(config: Config, key: str) -> dict[str, Any]:
    """Everything that a check finds, in plain types. DataError where the model's processor cannot be loaded."""
    from vlmft.chat.encode import Encoder
    from vlmft.models.load import load_processor, stop_ids

    parts = read_parts(config)
    add_findings(parts)
    overlaps = leaks(parts)
    encoder = Encoder(load_processor(config.model), config.model.answer_style, stop_ids(config.model))
    said = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for part in parts:
            task = bar.add_task(part.name, total=len(part.questions))
            measured, found = tokens.measure(
                part, encoder,
                algorithm=config.method.algorithm,
                limit=config.method.max_row_tokens,
                over_long=config.dataset.over_long,
                new_tokens=token_limit(config.model.answer_style, config.eval.generation),
                progress=lambda done, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            part.findings += found
            said.append(_part(part, overlaps.get(part.name)) | measured.as_dict())
    return {"schema": 1, "key": key, "model": config.model.name, "dataset": config.dataset.name,
            "finished": time.time(), "parts": said}  # fmt: skip


def _part(part: Part, overlap: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "name": part.name,
        "use": part.use,
        "questions": len(part.questions),
        "images": len(part.images),
        "balance": findings.balance(part.questions),
        "leakage": dict(overlap or {}),
        "findings": [found.as_dict() for found in part.findings],
    }


def leaks(parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """For each split that is not trained on, what of it is: counts by training set, and the rows as findings."""
    train = [question for part in parts if part.use == TRAIN for question in part.questions]
    if not train:
        return {}
    entries = leakage.trained_on(train)
    counts = {}
    for part in parts:
        if part.use == TRAIN or not part.questions:
            continue
        audit = leakage.audit(entries, part.questions)
        counts[part.name] = audit.counts
        said = zip(part.questions, audit.rows, strict=True)
        same = [findings.where(question) for question, row in said if row["pair"]]
        part.findings += findings.finding(
            findings.WARNING, "rows that are in train as well (same pictures, question and answer)", same
        )
        for sentence in leakage.sentences(audit.counts, part.set):
            part.findings.append(findings.Finding(findings.WARNING, sentence, 0, ()))
    return counts


def main(request: str, folder: str, key: str) -> int:
    config = read_config(Path(request))
    try:
        result = result_of(config, key)
    except DataError as error:
        tell(error)
        return 1
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / PAGE, page(result))
    write_json(place / RESULT, result)  # last: with its key, the check counts as done
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

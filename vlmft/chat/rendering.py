"""Question → the text that is trained on or generated from, by the model's own chat template, in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from vlmft.chat.prompts import messages, target
from vlmft.data.question import Question
from vlmft.schema import AnswerStyle

# Messages → text, with the prefix of the answer to come.
Template: TypeAlias = Callable[[list[dict[str, Any]]], str]
# By turns what the model is shown and what it says; of a prompt, the one piece.
Pieces: TypeAlias = list[str]


def prompt(template: Template, question: Question, style: AnswerStyle, think_prefilled: bool = False) -> Pieces:
    """History, the last question, and the prefix of its answer."""
    return [template(messages(question, style, think_prefilled)[:-1])]


def conversations(
    template: Template, question: Question, style: AnswerStyle, think_prefilled: bool = False
) -> Iterator[tuple[Question, Pieces]]:
    """What is trained of a question: the whole of it, or where the template rewrites history each answer by itself."""
    said = messages(question, style, think_prefilled)
    prompts = [template(said[:n]) for n in range(1, len(said), 2)]
    answers = [target(turn, style, think_prefilled) for turn in question.turns]
    whole, pieces, done = prompts[-1], [], 0
    for before, answer in zip(prompts[:-1], answers[:-1], strict=True):
        if not whole.startswith(before + answer):  # shown otherwise than it was trained
            for n, one in enumerate(answers, start=1):
                cut = replace(question, turns=question.turns[:n])
                yield cut, [*prompt(template, cut, style, think_prefilled), one]
            return
        pieces += [whole[done : len(before)], answer]
        done = len(before) + len(answer)
    yield question, [*pieces, whole[done:], answers[-1]]

"""Question → chat messages, in the content form that every processor's chat template takes."""

from __future__ import annotations

from typing import Any

from vlmft.data.question import IMAGE_MARK, Question, Turn
from vlmft.schema import AnswerStyle, Generation

Message = dict[str, Any]


# A model that ends its answer pays nothing for a high limit; one that rambles is cut here, and counted as unparsed.
_AUTO_NEW_TOKENS = {
    AnswerStyle.plain: 64, AnswerStyle.answer: 64, AnswerStyle.think: 2048, AnswerStyle.think_answer: 2048
}  # fmt: skip
THINK = "<think>\n"  # what a template writes that begins every answer with a thought itself


def target(turn: Turn, style: AnswerStyle, think_prefilled: bool = False) -> str:
    """What the model is trained to say. A thought is kept where the data has one and never invented.

    `think_prefilled` says that the chat template has written THINK before it: under every style it is closed first.
    """
    if think_prefilled:
        thinks = style in (AnswerStyle.think, AnswerStyle.think_answer)
        in_tags = style in (AnswerStyle.answer, AnswerStyle.think_answer)
        answer = f"<answer>{turn.answer}</answer>" if in_tags else turn.answer
        return f"{(turn.thought or '') if thinks else ''}\n</think>\n\n{answer}"
    if style is AnswerStyle.plain:
        return turn.answer
    if style is AnswerStyle.think:
        return f"<think>{turn.thought or ''}</think>\n{turn.answer}"
    tagged = f"<answer>{turn.answer}</answer>"
    if style is AnswerStyle.think_answer and turn.thought:
        return f"<think>{turn.thought}</think>{tagged}"
    return tagged


def user_message(turn: Turn, images: int) -> Message:
    """The user's side of a turn that shows `images` pictures: where the text marks them, else before the text."""
    content: list[Message] = []
    if IMAGE_MARK in turn.question:
        for position, words in enumerate(turn.question.split(IMAGE_MARK)):
            content += [{"type": "image"}] if position else []
            content += [{"type": "text", "text": words}] if words.strip() else []
    else:
        content = [{"type": "image"}] * images + [{"type": "text", "text": turn.question}]
    return {"role": "user", "content": content}


def messages(question: Question, style: AnswerStyle, think_prefilled: bool = False) -> list[Message]:
    """User and assistant messages in turn, ending with the assistant's last answer.

    Pictures without a mark in any turn belong to the first one.
    """
    marked = any(IMAGE_MARK in turn.question for turn in question.turns)
    out = []
    for number, turn in enumerate(question.turns):
        images = 0 if marked or number else len(question.images)
        out.append(user_message(turn, images))
        said = (THINK if think_prefilled else "") + target(turn, style, think_prefilled)
        out.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    return out


def token_limit(style: AnswerStyle, settings: Generation) -> int:
    """How many tokens a reply may have."""
    limit = settings.max_new_tokens
    return _AUTO_NEW_TOKENS[style] if limit == "auto" else int(limit)

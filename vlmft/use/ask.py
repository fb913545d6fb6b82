"""`vlmft ask`: questions to a trained model: one, a conversation, or some of its own test set beside their answers."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vlmft.data import images
from vlmft.data.question import IMAGE_MARK, OPEN, Question, Turn
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation.answer_kinds import OK
from vlmft.evaluation.answers import UNCLOSED_THINK, parse
from vlmft.evaluation.protocols import judge
from vlmft.schema import Config, Generation
from vlmft.use.trained import own_questions

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoder

DEMO = 6  # questions that --demo asks
_HELP = (
    "/image PATH adds a picture to the next question, /new forgets what was said, /thoughts shows or hides thoughts, \
/quit (or Ctrl-D) ends"
)
_THINK = re.compile(r"</?think(?:ing)?\s*>", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """What a model said. `answer` is None where none could be read, and `status` then says why."""

    raw: str
    answer: str | None
    status: str
    thought: str
    thought_tokens: int
    tokens: int
    seconds: float


def settings_of(
    config: Config, max_new_tokens: int | None = None, temperature: float | None = None, top_p: float | None = None
) -> Generation:
    """How the run generates, changed as asked for: a temperature above 0 samples. ConfigError for what has no sense."""
    found = config.eval.generation
    if max_new_tokens is not None:
        if max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens {max_new_tokens}: it should be at least 1")
        found = replace(found, max_new_tokens=max_new_tokens)
    if temperature is not None:
        if temperature < 0:
            raise ConfigError(f"--temperature {temperature}: it should be 0 (the likeliest token each time) or more")
        found = replace(found, do_sample=temperature > 0, temperature=temperature or None)
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ConfigError(f"--top-p {top_p}: it should be above 0 and at most 1")
        if not found.do_sample:
            raise ConfigError("--top-p is of sampling: give a --temperature above 0 as well, such as 1")
        found = replace(found, top_p=top_p)
    return found


class Conversation:
    """Questions and answers in turn; pictures belong to the turn they came with, and thoughts are not kept."""

    def __init__(self, model: Any, encoder: Encoder, settings: Generation) -> None:
        self.model, self.encoder, self.settings = model, encoder, settings
        self.turns: list[Turn] = []
        self.pictures: list[str] = []

    def ask(self, text: str, pictures: Sequence[str] = ()) -> Reply:
        """What the model says next. Raises DataError for what cannot be asked; the conversation is then as before."""
        from vlmft.evaluation.generate import generate

        asked = Turn(_with_marks(text, pictures), "")
        shown = (*self.pictures, *pictures)
        if shown and self.encoder.image_token is None:
            raise DataError("this model reads text only; ask without a picture")
        row = self.encoder.prompt_row(Question("1", "this conversation", shown, (*self.turns, asked), OPEN))
        started = time.monotonic()
        said = next(generate(self.model, self.encoder, [row], self.settings))
        seconds = time.monotonic() - started
        read = parse(
            said["raw"], finish_reason=said["finish_reason"], answer_type=OPEN, think_prefilled=said["think_prefilled"]
        )
        thought, rest = _thought_and_rest(said["raw"], read.status == UNCLOSED_THINK)
        tokens = len(self.encoder.tokenizer(thought, add_special_tokens=False).input_ids) if thought else 0
        reply = Reply(said["raw"], read.text, read.status, thought, tokens, said["tokens"], seconds)
        if reply.answer or rest:
            self.turns.append(replace(asked, answer=reply.answer or rest))
            self.pictures += pictures
        return reply


def _with_marks(text: str, pictures: Sequence[str]) -> str:
    """The question with a mark for each of its pictures; they come first unless it has marks itself."""
    marks = text.count(IMAGE_MARK)
    if not text.replace(IMAGE_MARK, "").strip():
        raise DataError("the question is empty")
    if marks and marks != len(pictures):
        raise DataError(
            f"the question has {marks} {IMAGE_MARK} and comes with {len(pictures)} pictures; it should have one for "
            "each, or none: they then come first"
        )
    return text if marks else IMAGE_MARK * len(pictures) + text


def _thought_and_rest(raw: str, unclosed: bool) -> tuple[str, str]:
    parts = [part.strip() for part in _THINK.split(raw)]
    rest = "" if unclosed else parts.pop()
    return "\n".join(filter(None, parts)), rest


def tell(reply: Reply, *, thoughts: bool = False, raw: bool = False, more: str = "--thoughts") -> None:
    """Print the answer; what is said about it goes to stderr, so that a pipe has the answer alone."""
    if raw:
        print(reply.raw)
    else:
        if reply.thought and thoughts:
            _dim(Console(), reply.thought)
        elif reply.thought:
            note(f"(a thought of {reply.thought_tokens} tokens; {more} shows it)")
        if reply.answer is None:
            note(f"(no answer could be read: {reply.status.replace('_', ' ')})")
            print(_thought_and_rest(reply.raw, reply.status == UNCLOSED_THINK)[1])
        else:
            print(reply.answer)
    note(f"{reply.tokens} token{'s' * (reply.tokens != 1)} in {reply.seconds:.1f} s")


def note(text: str) -> None:
    """Print a line about what is done to stderr, dimly."""
    _dim(Console(stderr=True), text)


def _dim(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def interact(talk: Conversation, pictures: Sequence[str], *, thoughts: bool = False, raw: bool = False) -> None:
    """Answer line after line of stdin until it ends; `pictures` belong to the first question."""
    waiting = list(pictures)
    if sys.stdin.isatty():
        note(_HELP)
    for line in _lines():
        command, _, rest = line.strip().partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/new":
                talk.turns, talk.pictures, waiting = [], [], []
                note("(what was said is forgotten)")
            elif command == "/thoughts":
                thoughts = not thoughts
                note(f"(thoughts are {'shown' if thoughts else 'hidden'})")
            elif command == "/image":
                waiting.append(picture(rest.strip().strip("'\"")))
                note(f"({len(waiting)} picture{'s' * (len(waiting) > 1)} for the next question)")
            elif command.startswith("/"):
                note(f"({command} means nothing here: {_HELP})")
            elif command:
                tell(talk.ask(line.strip(), waiting), thoughts=thoughts, raw=raw, more="/thoughts")
                waiting = []
        except DataError as error:
            note(f"({error})")
        except KeyboardInterrupt:  # of an answer that takes too long
            note("(stopped)")


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 (gives `input` its editing and history)

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def picture(path: str) -> str:
    """The whole path of a picture. Raises DataError where it is none."""
    whole = str(Path(path).expanduser().absolute())
    if not path or not Path(whole).is_file():
        raise DataError(f"{path or 'no path'} is no picture here; it should be the path of an image file")
    images.size(whole)
    return whole


def demo(model: Any, encoder: Encoder, config: Config, settings: Generation, seed: int) -> None:
    """Print some test questions of the run's own sets: what is asked, the gold answer, the reply, and the verdict.

    Raises DataError where the run has no such set.
    """
    from vlmft.evaluation.generate import predict

    questions = own_questions(config, DEMO, seed)
    rows = list(encoder.prompts(questions))
    with tempfile.TemporaryDirectory(prefix="vlmft-demo-") as scratch:
        records = predict(
            model, encoder, questions, rows, settings, Path(scratch) / "predictions.jsonl", "demo", lambda done: None
        )
    protocol, right = config.eval.protocols[0], 0
    for record in records:
        verdict = judge(record, protocol)
        right += verdict.correct
        outcome = "right" if verdict.correct else "wrong" if verdict.status == OK else f"wrong, {verdict.status}"
        for file in record["images"]:
            print(f"picture   {file}")
        print(f"question  {record['question']}\ngold      {record['gold']}")
        print(f"reply     {verdict.parsed if verdict.parsed is not None else record['raw']} ({outcome})\n")
    sets = ", ".join(dict.fromkeys(record["set"] for record in records))
    print(f"{right} of {len(records)} right by the protocol {protocol} on {sets}")

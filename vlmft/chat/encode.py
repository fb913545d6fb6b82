"""Messages → tokens and loss mask.

A training row is exactly what generation starts from, followed by the answer: the prompt is rendered by the model's
own chat template with its generation prefix, then come the target and the token that ends a turn. Only these last two
carry labels. Image tokens are counted from the image's header, so no picture is decoded here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from vlmft.chat.image_cache import ImageCache
from vlmft.chat.prompts import target
from vlmft.chat.rendering import Pieces, conversations, prompt
from vlmft.data import images
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.schema import Algorithm, AnswerStyle

IGNORED = -100  # the label that every Hugging Face loss passes over
_DATE = "26 Jul 2024"  # what Llama's templates tell where no clock is; a prompt must be the same every day
_TOGETHER = 1000  # rows tokenised in one call, which until it returns holds some 50 KB for each


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence. `input_ids` and `labels` have the same length; for a prompt to generate from, labels are empty.

    `question` names it as <set>:<id>. `images` holds (path, size), with size None for the file's own, or (width,
    height) to shrink it to first.
    """

    question: str
    input_ids: list[int]
    labels: list[int]
    images: tuple[images.Picture, ...]

    @property
    def answer_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    @property
    def branches(self) -> tuple[Row, ...]:
        """The sequences that the model reads of it."""
        return (self,)

    @property
    def length(self) -> int:
        """Tokens of the longest of its sequences."""
        return max(len(branch.input_ids) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Pair(Row):
    """A prompt with the wanted answer, and `rejected`: the same prompt with the other one.

    `reference` are the log-probabilities of both answers under the reference model, once they are known.
    """

    rejected: Row
    reference: tuple[float, float] | None = None

    @property
    def branches(self) -> tuple[Row, ...]:
        return (Row(self.question, self.input_ids, self.labels, self.images), self.rejected)


class Encoder:
    """Encodes questions for one processor and answer style.

    `processor` is what `AutoProcessor` gives: a processor with a tokenizer and an image processor, or a tokenizer.
    Raises DataError where the chat template cannot be used.
    """

    def __init__(self, processor: Any, style: AnswerStyle, stop_ids: Iterable[int] = ()) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.style = style
        self.image_token = getattr(processor, "image_token", None)
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token) if self.image_token else None
        # Pictures beside the text: one token stands for each, and a mask says which tokens see it.
        self.cross_attends = "cross_attention_mask" in processor.model_input_names
        self._dated = "date_string" in str(processor.chat_template or self.tokenizer.chat_template)
        self._visual_tokens: dict[images.Size, int] = {}
        self._numbers: dict[int, int] = {}
        known = {self.tokenizer.eos_token_id, *stop_ids} - {None}
        self.end_id = self._end_of_turn(known)
        self.stop_ids = sorted(known | {self.end_id})
        # Some templates begin the answer with <think> themselves; a reply then holds only the closing tag.
        asked = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        self.think_prefilled = self._render(asked).rstrip().endswith("<think>")

    @cached_property
    def image_cache(self) -> ImageCache:
        """Where this processor's pictures are kept."""
        return ImageCache(getattr(self.processor, "image_processor", None))

    def rows(self, questions: Iterable[Question], algorithm: Algorithm = Algorithm.sft) -> Iterator[Row]:
        """Training rows, in the order of the questions, which are taken as the rows are asked for.

        One row a question, with every answer trained; where the template rewrites history (drops thoughts), one for
        each answer. Under DPO one Pair a question, whose last answers alone carry labels. Raises DataError for a text
        that has not as many image places as its question has pictures, and under DPO for a question without a
        rejected answer.
        """
        if algorithm is Algorithm.dpo:
            return self._pairs(questions)
        return self._encoded(
            written
            for question in questions
            for written in conversations(self._render, question, self.style, self.think_prefilled)
        )

    def _pairs(self, questions: Iterable[Question]) -> Iterator[Row]:
        both = self._encoded(
            (question, [*prompt(self._render, question, self.style, self.think_prefilled), said])
            for question in questions
            for said in self._answers(question)
        )
        for chosen, rejected in zip(both, both, strict=True):
            if chosen.input_ids == rejected.input_ids:
                raise DataError(
                    f"{chosen.question}: as model.answer_style={self.style.value} writes them, the chosen and the "
                    "rejected answer are the same; take the row out, or choose a style that writes thoughts"
                )
            yield Pair(chosen.question, chosen.input_ids, chosen.labels, chosen.images, rejected)

    def _answers(self, question: Question) -> list[str]:
        """What is wanted and what is not, as they are trained."""
        if question.rejected is None:
            raise DataError(
                f"question {question.id} of {question.set} has no rejected answer: DPO is trained on rows with "
                "'chosen' and 'rejected'; `vlmft pairs RUN_DIR` makes them from what a run answered"
            )
        return [target(turn, self.style, self.think_prefilled) for turn in (question.turns[-1], question.rejected)]

    def prompts(self, questions: Iterable[Question]) -> Iterator[Row]:
        """What generation starts from, for each question: history, the last question, the generation prefix."""
        return self._encoded(
            (question, prompt(self._render, question, self.style, self.think_prefilled)) for question in questions
        )

    def train_rows(self, question: Question) -> list[Row]:
        """The training rows of one question."""
        return list(self.rows([question]))

    def prompt_row(self, question: Question) -> Row:
        """The prompt of one question."""
        return next(self.prompts([question]))

    def answer_ids(self, turn: Turn) -> list[int]:
        """The tokens that follow a prompt: the turn's answer as it is trained, and the end of the turn."""
        said = target(turn, self.style, self.think_prefilled)
        return [*self._tokens([said])[said], self.end_id]

    def _encoded(self, written: Iterable[tuple[Question, Pieces]]) -> Iterator[Row]:
        """The row of each; many are tokenised together, as calling the tokenizer costs more than a short text."""
        rest = iter(written)
        while some := list(islice(rest, _TOGETHER)):
            tokens = self._tokens({piece for _, pieces in some for piece in pieces})
            for question, pieces in some:
                yield self._row(question, [tokens[piece] for piece in pieces])

    def _row(self, question: Question, pieces: list[list[int]]) -> Row:
        ids: list[int] = []
        labels: list[int] = []
        if len(pieces) == 1:  # a prompt
            ids = pieces[0]
        else:
            for shown, spoken in zip(pieces[::2], pieces[1::2], strict=True):
                start = len(ids)
                ids = ids + shown + spoken
                labels += [IGNORED] * len(shown) + spoken
                if start and shown[0] in self.stop_ids:  # the token that ends the answer before this one
                    labels[start] = shown[0]
            ids = [*ids, self.end_id]
            labels.append(self.end_id)
        pictures = tuple((path, None) for path in question.images)
        found = ids.count(self.image_token_id) if self.image_token_id is not None else 0
        if pictures and self.image_token is None:
            raise DataError(
                f"question {question.id} of {question.set} shows pictures, but this model reads text "
                "only; dataset.images=ignore asks without the pictures (of a set that is only evaluated: "
                f"eval.sets.{question.set}.images=ignore)."
            )
        if found != len(pictures):
            raise DataError(
                f"question {question.id} of {question.set}: {len(pictures)} images, but {found} image places in its "
                f"text. A text must not contain {self.image_token}."
            )
        counts = self.visual_tokens(pictures)
        ids, labels = self.with_visual_tokens(ids, labels, [1] * found, counts)
        return Row(f"{question.set}:{question.id}", ids, labels, pictures)

    def with_visual_tokens(
        self, ids: list[int], labels: list[int], old: Sequence[int], new: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Copies with `new` image tokens for each picture in place of its `old` ones; they never carry a label."""
        image: Any = self.image_token_id
        all_ids: list[int] = []
        all_labels: list[int] = []
        done = 0
        for before, after in zip(old, new, strict=True):
            place = ids.index(image, done)
            all_ids += ids[done:place] + [image] * after
            if labels:
                all_labels += labels[done:place] + [IGNORED] * after
            done = place + before
        return all_ids + ids[done:], all_labels + labels[done:]

    def visual_tokens(self, pictures: Sequence[images.Picture]) -> list[int]:
        """Visual tokens of each picture, from its header."""
        sizes = [size or images.size(path) for path, size in pictures]
        if self.cross_attends:
            return [1] * len(sizes)
        if new := [size for size in dict.fromkeys(sizes) if size not in self._visual_tokens]:
            try:
                data = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in new])
            except ValueError as error:  # of one size, and its text does not say of which picture
                if len(pictures) == 1:
                    path, (width, height) = pictures[0][0], new[0]
                    raise DataError(f"{path} ({width}x{height} pixels) is refused by the processor: {error}") from error
                return [count for picture in pictures for count in self.visual_tokens([picture])]
            self._visual_tokens.update(zip(new, data.num_image_tokens, strict=True))
        return [self._visual_tokens[size] for size in sizes]

    def _render(self, said: list[dict[str, Any]], generate: bool = True) -> str:
        if self.image_token is None:  # templates of text models take nothing but strings
            said = [one | {"content": "".join(part.get("text", "") for part in one["content"])} for one in said]
        fixed = {"date_string": _DATE} if self._dated else {}
        text: str = self.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=generate, **fixed)
        return text

    def _tokens(self, texts: Collection[str]) -> dict[str, list[int]]:
        """Token ids of each text. The template has written every special token already."""
        ids = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        ).input_ids
        # One object for each token of the vocabulary: new ones would be most of what the rows of a large set weigh.
        return {text: list(map(self._numbers.setdefault, of, of)) for text, of in zip(texts, ids, strict=True)}

    def _end_of_turn(self, stop_ids: set[int]) -> int:
        """The token the template writes after an answer, if generation stops at it, else the tokenizer's eos token."""
        answer = "b"
        said = [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            {"role": "user", "content": [{"type": "text", "text": "c"}]},
        ]
        before, whole = self._render(said[:1]), self._render(said, generate=False)
        if whole.startswith(before + answer):
            rest = whole[len(before) + len(answer) :]
            after = self._tokens([rest])[rest]
            if after and after[0] in stop_ids:
                return after[0]
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos token, so the model could not be taught to stop")
        return int(self.tokenizer.eos_token_id)

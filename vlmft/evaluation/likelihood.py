"""Closed questions answered by likelihood: of the options, the one that the model gives the highest probability.

An option is written as training would write it, with its tags and the token that ends a turn, so nothing has to be read
out of a text. With the end token no option is the beginning of another: each is one event, and its log-probability is
the sum over its tokens. A division by the length, as for texts that may go on, would only favour long options.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.packing import Pack, groups
from vlmft.data.question import Turn
from vlmft.errors import DataError
from vlmft.evaluation.batches import batches
from vlmft.evaluation.shared_prefix import may_share, named_with_attention
from vlmft.models.log_probabilities import log_probabilities
from vlmft.schema import Generation, Packing

_DECIMALS = 4  # of a log-probability; what differs by less is a tie, as rounding in another batch may differ as much

logger = logging.getLogger(__name__)


def choose(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Row],
    options: Sequence[Sequence[str]],
    settings: Generation,
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Numbers of prompts with their replies, batch by batch, each prompt once all its options are scored.

    A reply is like one of generation, with the likeliest option as `raw`, and has `likelihood`: for each option, in the
    order given, the natural logarithm of its probability after the prompt, the sum over its tokens. Of equal ones the
    first is chosen. Of `settings`, batch size (options scored together) and packing count.

    Raises DataError for a prompt without options, and where a log-probability is not finite.
    """
    named = [tuple(dict.fromkeys(texts)) for texts in options]  # the same text twice is one option
    for prompt, texts in zip(prompts, named, strict=True):
        if not texts:
            raise DataError(f"question {prompt.question} has no options to choose from: give at least one")
    scored = [(number, text) for number, texts in enumerate(named) for text in texts]
    rows = [_row(encoder, prompts[number], text) for number, text in scored]
    shares = settings.packing is Packing.image
    if shares and not may_share(model):
        logger.info("packing   none for likelihoods: not proven equal for %s", named_with_attention(model))
        shares = False
    together = groups(rows, encoder.image_token_id) if shares else [([number], 0) for number in range(len(rows))]
    found: list[dict[str, float]] = [{} for _ in prompts]
    for batch in batches(rows, together, settings.batch_size):
        packs = [Pack(tuple(rows[n] for n in part), prefix) for part, prefix in batch]
        done = [scored[n] for part, _ in batch for n in part]
        for (number, text), value in zip(done, log_probabilities(model, encoder, packs), strict=True):
            found[number][text] = _checked(value, prompts[number], text)
        whole = [n for n in dict.fromkeys(number for number, _ in done) if len(found[n]) == len(named[n])]
        if whole:
            yield whole, [_reply({text: found[n][text] for text in named[n]}) for n in whole]


def _row(encoder: Encoder, prompt: Row, option: str) -> Row:
    """The prompt answered with `option`, with labels on that answer and its end token alone."""
    said = encoder.answer_ids(Turn("", option))
    return replace(prompt, input_ids=prompt.input_ids + said, labels=[IGNORED] * len(prompt.input_ids) + said)


def _checked(value: float, prompt: Row, option: str) -> float:
    if not math.isfinite(value):
        raise DataError(
            f"question {prompt.question}: the log-probability of the option {option!r} is {value}. A "
            "model that overflows float16 may work in model.dtype=bfloat16 or float32; else look at its weights."
        )
    return round(value, _DECIMALS)


def _reply(likelihood: dict[str, float]) -> dict[str, Any]:
    return {
        "raw": max(likelihood, key=lambda option: likelihood[option]),
        "tokens": 0,
        "finish_reason": "stop",
        "think_prefilled": False,
        "likelihood": likelihood,
    }

"""A model on test sets: prompts, predictions, floors, scores."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.load import Loaded, load
from vlmft.data.mixture import training_sets
from vlmft.errors import DataError
from vlmft.evaluation import floors, results
from vlmft.evaluation.predictions import predictions_file
from vlmft.identity import generation_hash, scoring_hash
from vlmft.schema import BadRows, Dataset, Eval, OverLong, QuestionSet
from vlmft.status import Status

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoded, Encoder

logger = logging.getLogger(__name__)


def chosen_sets(config: Eval, dataset: Dataset) -> dict[str, QuestionSet]:
    """The sets to evaluate on, by name: `eval.sets`, and with `eval.own` the run's own set or all of its mixture.

    What a mixture says of its test rows holds for each member, and `eval.bad_rows=drop` for every set.
    """
    own = {
        name: replace(
            member,
            max_test_rows=member.max_test_rows or dataset.max_test_rows,
            bad_rows=dataset.bad_rows if dataset.bad_rows is BadRows.drop else member.bad_rows,
        )
        for name, member in (training_sets(dataset) if config.own else {}).items()
    }
    sets = {**own, **config.sets}
    if config.bad_rows is BadRows.drop:
        sets = {name: replace(spec, bad_rows=BadRows.drop) for name, spec in sets.items()}
    return sets


def wanted(run: str, sets: dict[str, QuestionSet], config: Eval) -> dict[str, str]:
    """Generation hash of each set, for the weights of the run named `run`."""
    return {name: generation_hash(run, spec, config) for name, spec in sets.items()}


def evaluate(
    run: Path,
    sets: dict[str, QuestionSet],
    config: Eval,
    *,
    model: Any,
    encoder: Encoder,
    max_row_tokens: int,
    over_long: OverLong,
    status: Status,
) -> None:
    """Generate and score what is missing of `sets` in the run's folder, set by set."""
    from vlmft.evaluation.generate import predict

    hashes = wanted(run.name, sets, config)
    scoring = scoring_hash(config.protocols)
    generate, rescore = results.pending(run, hashes, scoring)
    for name in rescore:
        results.score_set(run, name, config.protocols, hashes[name], scoring)
    for name in generate:
        loaded, prompts = prompts_of(encoder, sets[name], config, max_row_tokens, over_long)
        questions = loaded.questions
        status.phase(f"evaluating {name}", total=len(questions))
        predict(
            model, encoder, questions, prompts.rows, config.generation,
            predictions_file(run, name), hashes[name], status.advance,
        )  # fmt: skip
        results.score_set(
            run, name, config.protocols, hashes[name], scoring,
            floor=_floor(sets[name], questions), dropped_rows=len(loaded.dropped), shrunk_rows=prompts.shrunk,
        )  # fmt: skip


def prompts_of(
    encoder: Encoder, spec: QuestionSet, config: Eval, max_row_tokens: int, over_long: OverLong
) -> tuple[Loaded, Encoded]:
    """The test questions of a set and their prompts, in the same order. Raises DataError for rows that cannot be used.

    Test questions are never dropped for their length: `dataset.over_long=drop` refuses here.
    """
    from vlmft.chat.encode import fit

    loaded = load(spec, "test", limit=_limit(spec.max_test_rows, config.max_rows))
    policy = over_long if over_long is OverLong.shrink_image else OverLong.refuse
    return loaded, fit(encoder, map(encoder.prompt_row, loaded.questions), max_row_tokens, policy)


def _limit(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _floor(spec: QuestionSet, questions: list[Any]) -> dict[str, Any]:
    """What can be scored without looking: learnt from the set's own training questions, where it has any."""
    try:
        train = load(spec, "train", drop_bad_rows=True).questions
    except DataError as error:
        logger.warning("%s has no training questions to take a question-only floor from: %s", spec.name, error)
        return {}
    return {"question_only": floors.question_only_scores(train, questions)}

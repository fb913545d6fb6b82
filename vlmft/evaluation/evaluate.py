"""A model on test sets: prompts, predictions, floors, scores."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vlmft import ranks
from vlmft.data import leakage, stream
from vlmft.data.load import Loaded, load, source
from vlmft.data.mixture import training_sets
from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, VQA, Question
from vlmft.errors import DataError
from vlmft.evaluation import floors, results
from vlmft.evaluation.ablations import PASSES, SHUFFLED, without_their_pictures
from vlmft.evaluation.predictions import predictions_file
from vlmft.files import file_digests
from vlmft.identity import generation_hash
from vlmft.schema import BadRows, Closed, Dataset, Eval, OverLong, QuestionSet
from vlmft.status import Status

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoder, Row
    from vlmft.chat.over_long import Encoded

logger = logging.getLogger(__name__)

# By what decides them: a set's test questions, their prompts, and its training questions.
Known: TypeAlias = "dict[str, tuple[Loaded, Encoded, Callable[[], Iterable[Question]]]]"

TRAINED_ON = "trained_on.jsonl"  # of a run: digests of its training rows, for the audit of any test set


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
    """Generation hash of each set and of its passes without pictures, for the weights of the run named `run`.

    With `eval.split`, of that split alone; DataError where it is none of a set's, or has the rows of its test split.
    """
    if config.split != Eval.split:
        for spec in sets.values():
            _refuse_test_rows(spec, config.split)
        return {f"{name}.{config.split}": generation_hash(run, spec, config) for name, spec in sets.items()}
    hashes = {name: generation_hash(run, spec, config) for name, spec in sets.items()}
    for kind in config.ablations:
        hashes |= {f"{name}.{kind}": generation_hash(run, spec, config, kind) for name, spec in sets.items()}
    return hashes


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
    known: Known,
) -> None:
    """Generate and score what is missing of `sets` in the run's folder, set by set.

    `known` keeps what was read and encoded, for other runs with the same encoder. Raises DataError where an adapter
    changes nothing. Several processes share the questions of each set; the first one scores them.
    """
    from vlmft.evaluation.generate import predict

    hashes = wanted(run.name, sets, config)
    ranks.meet()  # which makes them a group, where they are none yet
    # To another machine the files of a shared folder may look otherwise for a while.
    generate, rescore = ranks.same(results.pending(run, hashes, config.protocols))
    for name in rescore if ranks.first() else []:
        results.score_set(run, name, config.protocols, hashes[name])
    trained_on = run / TRAINED_ON
    for name in generate:
        set_, _, passed = name.partition(".")
        without = passed if passed in PASSES else ""
        said = repr((sets[set_], config.split, config.max_rows, max_row_tokens, over_long, without))
        if said not in known:
            loaded, prompts = prompts_of(encoder, sets[set_], config, max_row_tokens, over_long, without)
            known[said] = loaded, prompts, training_questions(sets[set_])
        loaded, prompts, train = known[said]
        if name == generate[0]:
            _refuse_idle_adapter(model, encoder, prompts.rows, run)
        status.phase(f"evaluating {name}", total=len(loaded.questions))
        of_test = config.split == Eval.split  # what a test question has of the training rows is not asked of these
        notes = floors.learnt(train(), loaded.questions) if of_test else []
        facts: dict[str, Any] = {"dropped_rows": len(loaded.dropped) + prompts.dropped, "shrunk_rows": prompts.shrunk}
        if of_test and trained_on.is_file():
            audit = leakage.audit(leakage.each(trained_on), loaded.questions)
            notes = [note | row for note, row in zip(notes, audit.rows, strict=True)]
            facts["leakage"] = audit.counts
        predict(
            model, encoder, loaded.questions, prompts.rows, config.generation,
            predictions_file(run, name), hashes[name], status.advance,
            notes=notes, options=options_of(loaded.questions, train()) if config.closed is Closed.likelihood else None,
        )  # fmt: skip
        if ranks.first():
            results.score_set(run, name, config.protocols, hashes[name], **facts)


def test_questions(spec: QuestionSet, config: Eval) -> Loaded:
    """The questions of a set's test split, within its limit and that of the evaluation. DataError as `load`."""
    return load(spec, "test", limit=_limit(spec.max_test_rows, config.max_rows))


def questions_of(spec: QuestionSet, config: Eval) -> Loaded:
    """The questions of the split that is answered, `eval.split`. DataError as `load`."""
    if config.split == Eval.split:
        return test_questions(spec, config)
    return load(spec, config.split, limit=config.max_rows)


def prompts_of(
    encoder: Encoder, spec: QuestionSet, config: Eval, max_row_tokens: int, over_long: OverLong, without: str = ""
) -> tuple[Loaded, Encoded]:
    """The questions of a set that are answered and their prompts, in the same order. DataError for unusable rows.

    Test questions are never dropped for their length: `dataset.over_long=drop` refuses here. Those of another
    `eval.split` are, as in training. `without` names a pass whose prompts show other pictures than the questions' own.
    """
    from vlmft.chat.over_long import fit

    of_test = config.split == Eval.split
    loaded = questions_of(spec, config)
    shown = without_their_pictures(loaded.questions, without) if without else loaded.questions
    if without == SHUFFLED:
        over_long = OverLong.shrink_image  # another picture may be larger than the question's own
    elif of_test and over_long is OverLong.drop:
        over_long = OverLong.refuse
    prompts = fit(encoder, encoder.prompts(shown), max_row_tokens, over_long)
    if not prompts.rows:
        raise DataError(
            f"{spec.name} {config.split}: all {prompts.dropped} rows have more than method.max_row_tokens="
            f"{max_row_tokens} tokens"
        )
    if prompts.dropped:
        kept = {row.question for row in prompts.rows}
        left = [question for question in loaded.questions if f"{question.set}:{question.id}" in kept]
        loaded = Loaded(left, loaded.dropped)
    return loaded, prompts


def _refuse_test_rows(spec: QuestionSet, split: str) -> None:
    """DataError where the split has rows of the test split, by whatever name its file goes, or where there is none."""
    module = source(spec)
    found = [set(file_digests(module.files(spec, split)))]
    try:
        found.append(set(file_digests(module.files(spec, Eval.split))))
    except DataError:  # there is no test split
        return
    if not set.intersection(*found):
        return
    rows, test = (
        {(row.id, row.text, row.images) for row in module.read(spec, name) if isinstance(row, Question)}
        for name in (split, Eval.split)
    )
    if rows & test:
        raise DataError(
            f"{spec.name}: the split {split} has the rows of the test split, in {module.files(spec, split)[0]}; test "
            f"questions are answered with eval.split={Eval.split}, and never made into pairs. Name another file with "
            f"{'' if split in spec.splits else '+'}dataset.splits.{split}=FILE"
        )


def _refuse_idle_adapter(model: Any, encoder: Encoder, rows: Sequence[Row], run: Path) -> None:
    """Raise DataError where the model wears an adapter that leaves what it says of a prompt as it is."""
    from vlmft.chat.collate import collate, for_model
    from vlmft.models.adapters import changes

    if not hasattr(model, "disable_adapter"):
        return
    row = next((row for row in rows if row.images), rows[0])  # an adapter of the vision tower needs a picture
    prompt = for_model(encoder, collate(encoder, [row], padding_side="left"), model.device, model.dtype)
    if not changes(model, prompt, eos_token_id=encoder.stop_ids, pad_token_id=encoder.tokenizer.pad_token_id):
        raise DataError(
            f"the adapter of {run} changes nothing: all its weights are zero, or it does not fit the base "
            f"(the logits after question {row.question} are the same with and without it)"
        )


def options_of(questions: Sequence[Question], train: Iterable[Question]) -> list[list[str]]:
    """What a question is answered with under `eval.closed=likelihood`; none for one whose answer is generated.

    A multiple-choice question's own options (their letters, where that is how its gold is written); for a closed one
    the closed answers of the training split, each in its commonest form, whatever its own gold is.
    """
    forms: dict[str, Counter[str]] = {}
    for question in train:
        if question.answer_type == CLOSED and question.task == VQA:
            forms.setdefault(question.answer.strip().casefold(), Counter())[question.answer.strip()] += 1
    closed = [counter.most_common(1)[0][0] for counter in forms.values()]
    found = []
    for question in questions:
        if question.task == MULTIPLE_CHOICE and question.options:
            letters = [chr(ord("A") + place) for place in range(len(question.options))]
            found.append(letters if question.answer.strip() in letters else list(question.options))
        elif question.task == VQA and question.answer_type == CLOSED:
            if not closed:
                raise DataError(
                    f"eval.closed=likelihood: {question.set} has no training questions to take the closed answers from"
                )
            found.append(closed)
        else:
            found.append([])
    return found


def _limit(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def training_questions(spec: QuestionSet) -> Callable[[], Iterable[Question]]:
    """The set's own training questions, for what is learnt from them without looking; none where it has none.

    Those of a set that is streamed are read anew each time.
    """
    try:
        if isinstance(spec, Dataset) and spec.streaming:
            source(spec).files(spec, "train")
            return lambda: (row for _, row in stream.rows(spec) if isinstance(row, Question))
        questions = load(spec, "train", drop_bad_rows=True, need_images=False).questions
    except DataError as error:
        logger.warning("%s has no training questions to take its floors from: %s", spec.name, error)
        questions = []
    return lambda: questions

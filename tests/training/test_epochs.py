"""The plan of an epoch: every question once, as many steps as single questions would need, resumable anywhere."""

from __future__ import annotations

import math
import pickle
import random
from collections import Counter
from dataclasses import replace

import pytest

from vlmft.chat.encode import IGNORED, Row
from vlmft.training.epochs import Epochs, InOrder

IMAGE = 5


def rows(*sizes: int, tokens: int = 20) -> list[Row]:
    """So many questions about each of so many pictures."""
    return [
        Row(f"{image}.{n}", [1, *[IMAGE] * tokens, 2, 10 + n, 3, 4], [IGNORED] * (tokens + 3) + [3, 4],
            ((f"{image}.png", None),))
        for image, size in enumerate(sizes) for n in range(size)
    ]  # fmt: skip


def epochs(made: list[Row], batch_size: int = 16, micro_batches: int = 1, most: int = 16, **changed: int) -> Epochs:
    settings = {"max_tokens": 4096, "seed": 0} | changed
    return Epochs(made, IMAGE, batch_size=batch_size, micro_batches=micro_batches, most=most, **settings)


def questions(micro_batches: list[list]) -> list[str]:  # type: ignore[type-arg]
    return [row.question for packs in micro_batches for pack in packs for row in pack.rows if row.answer_tokens]


@pytest.mark.parametrize("most", [1, 4, 16])
@pytest.mark.parametrize("micro_batches", [1, 2, 16])
@pytest.mark.parametrize("seed", range(3))
def test_every_question_comes_once_in_as_many_steps_as_without_packing(
    most: int, micro_batches: int, seed: int
) -> None:
    chance = random.Random(seed)
    made = rows(*(chance.randint(1, 23) for _ in range(60)))
    plan = epochs(made, micro_batches=micro_batches, most=most)
    assert len(plan) == math.ceil(len(made) / 16) * micro_batches
    items = [plan[n] for n in range(len(plan))]
    assert Counter(questions(items)) == Counter(row.question for row in made)
    assert all(packs for packs in items), "and no rank is ever without work"
    assert max(len(pack.rows) for packs in items for pack in packs) <= min(most, 16 // micro_batches)
    sizes = [len(questions(items[n : n + micro_batches])) for n in range(0, len(items), micro_batches)]
    assert all(4 <= size <= 30 for size in sizes), sizes
    assert plan.questions(plan.steps + 2) == len(made) + len(
        questions([plan[len(plan) + n] for n in range(2 * micro_batches)])
    )


def test_epochs_differ_and_are_a_function_of_the_seed() -> None:
    made = rows(*[11] * 20)
    plan, again, other = epochs(made), epochs(made), epochs(made, seed=1)
    first, second = (questions([plan[n] for n in range(start, start + len(plan))]) for start in (0, len(plan)))
    assert first != second and sorted(first) == sorted(second)
    assert first == questions([again[n] for n in range(len(again))])
    assert first != questions([other[n] for n in range(len(other))])
    sent = pickle.loads(pickle.dumps(plan))  # to a loader's worker
    assert questions([sent[len(plan) + n] for n in range(len(plan))]) == second


def test_how_a_step_is_cut_up_does_not_change_its_questions() -> None:
    made = rows(*[3, 9, 17, 40, 1, 1, 1, 8])
    whole, cut = epochs(made), epochs(made, micro_batches=4)
    for step in range(whole.steps):
        assert sorted(questions([whole[step]])) == sorted(questions([cut[4 * step + n] for n in range(4)]))


def test_the_sampler_goes_on_in_the_epoch_that_was_left() -> None:
    plan = epochs(rows(*[16] * 5), micro_batches=2)
    assert list(InOrder(plan, lambda: 0)) == list(range(10))
    assert list(InOrder(plan, lambda: 7)) == list(range(10, 20)), "step 7 is the third of the second epoch"


def test_a_pack_keeps_to_the_row_limit() -> None:
    plan = epochs(rows(16, 16, tokens=50), max_tokens=70)
    packs = [pack for n in range(len(plan)) for pack in plan[n]]
    assert max(pack.tokens for pack in packs) <= 70 and max(len(pack.rows) for pack in packs) > 1


def test_a_last_step_with_fewer_questions_than_micro_batches_is_filled_with_silence() -> None:
    plan = epochs(rows(3), micro_batches=16)
    items = [plan[n] for n in range(len(plan))]
    assert len(items) == 16 and len(questions(items)) == 3 and all(packs for packs in items)


def test_sets_with_one_question_a_picture_stay_ordinary_rows() -> None:
    plan = epochs(rows(*[1] * 40))
    assert {len(pack.rows) for n in range(len(plan)) for pack in plan[n]} == {1}
    assert {pack.prefix for n in range(len(plan)) for pack in plan[n]} == {0}


def test_a_step_without_pictures_has_one_that_teaches_nothing() -> None:
    """Else the vision tower would stand still in it on one process, and go on with its momentum on several."""
    shown = rows(1)
    made = shown + [replace(row, question=f"text {n}", images=()) for n, row in enumerate(rows(*[1] * 7))]
    plan = epochs(made, batch_size=2, micro_batches=2, most=1)
    items = [plan[n] for n in range(len(plan))]
    with_pictures = [
        [row for packs in items[n : n + 2] for pack in packs for row in pack.rows if row.images]
        for n in range(0, len(items), 2)
    ]
    assert [len(found) for found in with_pictures] == [1] * 4
    assert sum(row.answer_tokens > 0 for (row,) in with_pictures) == 1, "the one that was asked"
    assert plan.questions(plan.steps) == len(made), "it is no question"
    without = epochs([replace(row, images=()) for row in made], batch_size=2, micro_batches=2, most=1)
    assert not any(row.images for n in range(len(without)) for pack in without[n] for row in pack.rows)

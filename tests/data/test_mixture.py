from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from vlmft.data.load import Loaded
from vlmft.data.mixture import load_mixture, weighted
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.schema import BadRows, Dataset, QuestionSet


def write(folder: Path, name: str, count: int = 6) -> QuestionSet:
    (folder / name).mkdir()
    for split in ("train", "test"):
        rows = []
        for n in range(count):
            said = [{"from": "human", "value": "Big?"}, {"from": "gpt", "value": "yes"}]
            rows.append({"id": f"{name}{n}", "image": f"{n}.png", "conversations": said})
            Image.new("L", (32, 32), n).save(folder / name / f"{n}.png")
        (folder / name / f"{split}.json").write_text(json.dumps(rows))
    return QuestionSet(name=name, format="conversations", path=str(folder / name))


def members(**counts: int) -> dict[str, Loaded]:
    return {
        name: Loaded([Question(f"{name}{n}", name, (), (Turn("Q?", "a"),), "open") for n in range(count)], [])
        for name, count in counts.items()
    }


def test_single_set_is_its_only_member(tmp_path: Path) -> None:
    alone = write(tmp_path, "one")
    loaded = load_mixture(Dataset(name="one", format="conversations", path=alone.path, max_rows=2), "train", 0)
    assert list(loaded) == ["one"] and len(loaded["one"].questions) == 2


def test_members_are_loaded_by_name_within_their_own_limits(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one"), write(tmp_path, "two")
    one.max_rows, two.max_test_rows = 2, 3
    dataset = OmegaConf.structured(Dataset(name="both", sets={"one": one, "two": two}))
    counts = {
        split: {name: len(loaded.questions) for name, loaded in load_mixture(dataset, split, 0).items()}
        for split in ("train", "test")
    }
    assert counts == {"train": {"one": 2, "two": 6}, "test": {"one": 6, "two": 3}}
    assert {q.set for q in load_mixture(dataset, "train", 0)["two"].questions} == {"two"}


def test_percent_is_a_share_of_each_members_training_images(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one"), write(tmp_path, "two", count=10)
    two.percent = 20
    dataset = Dataset(name="both", sets={"one": one, "two": two}, percent=50)
    assert [len(part.questions) for part in load_mixture(dataset, "train", 0).values()] == [3, 2]
    assert [len(part.questions) for part in load_mixture(dataset, "test", 0).values()] == [6, 10]
    again = load_mixture(dataset, "train", 0)["two"].questions
    assert again != load_mixture(dataset, "train", 1)["two"].questions, "which images depends on the seed"
    two.max_rows = 1
    assert len(load_mixture(dataset, "train", 0)["two"].questions) == 1, "the smaller of the two holds"
    two.percent = 0
    with pytest.raises(DataError, match="percent is 0"):
        load_mixture(dataset, "train", 0)


def test_limit_and_policy_of_the_mixture_hold_for_members(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one"), write(tmp_path, "two")
    two.max_rows = 3
    (tmp_path / "one" / "0.png").unlink()
    dataset = Dataset(name="both", sets={"one": one, "two": two}, max_rows=5, bad_rows=BadRows.drop)
    loaded = load_mixture(dataset, "train", 0)
    assert [len(part.questions) for part in loaded.values()] == [5, 3]
    assert [len(part.dropped) for part in loaded.values()] == [1, 0]


def test_limit_of_nothing_is_refused_rather_than_taken_for_none(tmp_path: Path) -> None:
    one = write(tmp_path, "one")
    one.max_rows = 0
    with pytest.raises(DataError, match="at least 1"):
        load_mixture(Dataset(name="mix", sets={"one": one}), "train", 0)


def test_errors_name_the_member(tmp_path: Path) -> None:
    lost = QuestionSet(name="two", format="conversations", path=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"dataset\.sets\.two: .*gone"):
        load_mixture(Dataset(name="both", sets={"one": write(tmp_path, "one"), "two": lost}), "train", 0)


def test_weights() -> None:
    loaded = members(a=10, b=10, c=10, d=10)
    questions = weighted(loaded, {"a": 0.5, "b": 2.0, "c": 1.3}, seed=0)
    assert [q.set for q in questions] == ["a"] * 5 + ["b"] * 20 + ["c"] * 13 + ["d"] * 10
    times = {name: Counter(q.id for q in questions if q.set == name).values() for name in "abcd"}
    assert set(times["a"]) == {1} and set(times["b"]) == {2}
    assert Counter(times["c"]) == {1: 7, 2: 3} and len(times["c"]) == 10
    assert [q.id for q in questions if q.set == "a"] == sorted(q.id for q in questions if q.set == "a")


def test_weights_are_seeded() -> None:
    def drawn(seed: int) -> list[str]:
        return [q.id for q in weighted(members(a=20), {"a": 0.5}, seed)]

    assert drawn(0) == drawn(0) and len({tuple(drawn(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_impossible_weight_names_its_member(weight: float) -> None:
    with pytest.raises(DataError, match=r"dataset\.sets\.b\.weight"):
        weighted(members(a=2, b=2), {"b": weight}, 0)


def test_weight_of_no_member_and_weights_that_leave_nothing() -> None:
    with pytest.raises(DataError, match="weight for c, but the sets are a"):
        weighted(members(a=2), {"c": 1.0}, 0)
    with pytest.raises(DataError, match="leave no rows"):
        weighted(members(a=2), {"a": 0.0}, 0)

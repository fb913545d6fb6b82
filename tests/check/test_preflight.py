from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vlmft.check import preflight
from vlmft.check.__main__ import result_of
from vlmft.check.parts import read_parts, state
from vlmft.errors import DataError
from vlmft.schema import BadRows, Config, OverLong

LIMIT = 25  # tokens; some rows of the demo have more


@pytest.fixture(scope="module")
def config(composed: Callable[..., Config]) -> Config:
    return composed("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=60", "eval.max_rows=20", "hardware=cpu")


def test_what_is_seen_of_a_set_in_order(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    preflight.before_training(config)
    assert capsys.readouterr().out.startswith("check     58 training and 17 test questions are in order")
    result = result_of(config, "key")
    train, test = result["parts"]
    assert (train["name"], train["questions"], test["questions"]) == ("demo_ct train", 58, 17)
    assert not [found for part in result["parts"] for found in part["findings"] if found["level"] == "error"]
    assert train["tokens"]["visual"] == {"least": 4, "median": 4.0, "p95": 4.0, "most": 4, "all": 232}
    sample = train["samples"][0]
    trained = "".join(piece["text"] for piece in sample["pieces"] if piece["kind"] == "trained")
    assert trained.startswith("<answer>") and trained.endswith("</answer><|user|>")
    assert all(piece["kind"] != "trained" for part in [test] for row in part["samples"] for piece in row["pieces"])


@pytest.mark.parametrize(("policy", "level"), [(OverLong.refuse, "error"), (OverLong.drop, "note")])
def test_rows_over_the_limit_are_told_by_the_policy(config: Config, policy: OverLong, level: str) -> None:
    short = replace(config, method=replace(config.method, max_row_tokens=LIMIT))
    result = result_of(replace(short, dataset=replace(config.dataset, over_long=policy)), "key")
    (found,) = [f for f in result["parts"][0]["findings"] if f"{LIMIT} tokens" in f["what"] or f"={LIMIT}" in f["what"]]
    assert found["level"] == level and found["rows"] and found["count"] < 58
    assert result["parts"][0]["longest"][0]["tokens"] >= result["parts"][0]["longest"][-1]["tokens"] > LIMIT


def test_the_state_changes_with_annotations_and_pictures(tmp_path: Path, composed: Callable[..., Config]) -> None:
    from PIL import Image

    said = [{"from": "human", "value": "Big?"}, {"from": "gpt", "value": "yes"}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([{"image": "a.png", "conversations": said}]))
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    config = composed("model=tiny_glm41v", "dataset=conversations", f"dataset.path={tmp_path}")
    states = [state(read_parts(config))]
    assert state(read_parts(config)) == states[0]
    Image.new("L", (48, 32)).save(tmp_path / "a.png")
    states.append(state(read_parts(config)))
    said[1]["value"] = "no"
    (tmp_path / "test.json").write_text(json.dumps([{"image": "a.png", "conversations": said}]))
    states.append(state(read_parts(config)))
    assert len({json.dumps(one) for one in states}) == 3


def test_missing_splits_are_findings_and_the_rest_goes_on(tmp_path: Path, config: Config) -> None:
    gone = replace(config.dataset, name="gone", format="conversations", path=str(tmp_path / "nowhere"))
    parts = read_parts(replace(config, dataset=replace(config.dataset, sets={"demo_ct": config.dataset, "gone": gone})))
    told = {part.name: [found.level for found in part.findings] for part in parts}
    assert told["demo_ct train"] == [] and told["gone train"] == told["gone test"] == ["error"]


def test_dropping_turns_errors_into_notes(tmp_path: Path, composed: Callable[..., Config]) -> None:
    said = [{"from": "human", "value": "Big?"}, {"from": "gpt", "value": "yes"}]
    rows = [{"image": [], "conversations": said}, {"image": "gone.png", "conversations": said}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    config = composed("model=tiny_glm41v", "dataset=conversations", f"dataset.path={tmp_path}", "dataset.bad_rows=drop")
    assert config.dataset.bad_rows is BadRows.drop
    preflight.before_training(config)
    assert [[found.level for found in part.findings] for part in read_parts(config)] == [["note"], ["note"]]


def test_a_set_without_a_usable_row_is_told_once_with_the_reason(
    tmp_path: Path, composed: Callable[..., Config]
) -> None:
    said = [{"from": "human", "value": "Big?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "train.json").write_text(json.dumps([{"image": "gone.png", "conversations": said}] * 2))
    config = composed("model=tiny_glm41v", "dataset=conversations", f"dataset.path={tmp_path}", "eval=none")
    with pytest.raises(DataError) as error:
        preflight.before_training(config)
    told, rest = str(error.value).splitlines()
    assert told.startswith("conversations train: no usable rows in ") and "none of its 2 can be used" in told
    assert "gone.png is not there" in told and rest == "Put them right.", "leaving them out would leave nothing"

"""The sample of questions: the same for all runs, judged as scoring does, with pictures that give nothing away."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from vlmft.evaluation.predictions import predictions_file, write_predictions
from vlmft.evaluation.protocols import judge
from vlmft.report import gallery as module
from vlmft.report.gallery import EDGE, LONGEST_TEXT, gallery, spread, thumbnail
from vlmft.report.scan import Run

PROTOCOLS = ("normalized", "strict")


def record(place: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"q{place}",
        "set": "ct",
        "images": [],
        "question": f"Is this number {place}?",
        "gold": "Yes",
        "answer_type": "closed",
        "task": "vqa",
        "facts": {"organ": "liver"},
        "raw": "<answer>yes</answer>",
        "finish_reason": "stop",
    } | changes


@pytest.fixture
def told(tmp_path: Path) -> Any:
    """told(run=[records of set ct], …): rows of a matrix with those runs."""

    def of(**runs: Iterable[dict[str, Any]]) -> list[tuple[str, Run]]:
        rows = []
        for name, records in runs.items():
            folder = tmp_path / name
            folder.mkdir()
            write_predictions(predictions_file(folder, "ct"), records)
            rows.append((name.upper(), Run(folder, {}, {"evaluations": {"ct": {}}}, {})))
        return rows

    return of


def picture(file: Path, size: tuple[int, int] = (640, 320), **how: Any) -> str:
    from PIL import Image

    Image.new("RGB", size, (90, 20, 20)).save(file, **how)
    return str(file)


def opened(jpeg: str | None) -> Any:
    from PIL import Image

    assert jpeg is not None
    return Image.open(io.BytesIO(base64.b64decode(jpeg)))


def test_runs_are_shown_on_the_same_questions(told: Any) -> None:
    rows = told(a=map(record, range(300)), b=map(record, range(150, 400)))
    data = gallery(rows, ["ct"], PROTOCOLS)
    assert len(data["questions"]) == module.QUESTIONS
    assert all(set(question["answers"]) == {"0", "1"} for question in data["questions"])
    assert data["asked"] == {"ct": 400}
    assert gallery(rows, ["ct"], PROTOCOLS) == data


def test_runs_that_share_no_question_are_both_shown(told: Any) -> None:
    data = gallery(told(a=[record(1)], b=[record(2)]), ["ct"], PROTOCOLS)
    assert [list(question["answers"]) for question in data["questions"]] == [["0"], ["1"]]


def test_verdicts_are_those_of_scoring(told: Any) -> None:
    records = [record(0), record(1, raw="no"), record(2, raw="", finish_reason="length"), record(3, raw="Yes")]
    questions = gallery(told(a=records), ["ct"], PROTOCOLS)["questions"]
    for one, question in zip(records, questions, strict=True):
        for protocol, said in zip(PROTOCOLS, question["answers"]["0"]["verdicts"], strict=True):
            verdict = judge(one, protocol)
            assert said == (("right" if verdict.correct else "wrong") if verdict.status == "ok" else verdict.status)
    assert questions[0]["answers"]["0"] == {"said": "yes", "verdicts": ["right", "wrong"]}


def test_an_answer_that_cannot_be_read_is_shown_as_it_was(told: Any) -> None:
    rows = told(a=[record(0, raw="<think>so, the liver", finish_reason="length")])
    answer = gallery(rows, ["ct"], PROTOCOLS)["questions"][0]["answers"]["0"]
    assert answer == {"said": "<think>so, the liver", "verdicts": ["unclosed_think"] * 2}


def test_a_protocol_of_another_version_is_no_error(told: Any) -> None:
    data = gallery(told(a=[record(0)]), ["ct"], ["former"])
    assert data["questions"][0]["answers"]["0"]["verdicts"] == ["unknown protocol"]


def test_long_texts_are_cut(told: Any) -> None:
    data = gallery(told(a=[record(0, question="x" * 9000)]), ["ct"], PROTOCOLS)
    assert len(data["questions"][0]["question"]) <= LONGEST_TEXT + 4


def test_many_sets_and_runs_stay_within_a_page(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUESTIONS_IN_ALL", 20)
    rows = told(a=map(record, range(50)))
    one, run = rows[0]
    names = [f"set{place}" for place in range(4)]
    for name in names:
        write_predictions(predictions_file(run.folder, name), map(record, range(50)))
    scored = Run(run.folder, {}, {"evaluations": {name: {} for name in names}}, {})
    data = gallery([(one, scored)] * 200, names, PROTOCOLS)
    assert len(data["questions"]) == 20
    assert (len(data["runs"]), data["scored_runs"]) == (module.RUNS, 200)


def test_spread_keeps_both_ends() -> None:
    assert spread(range(200), 12)[0] == 0
    assert spread(range(200), 12)[-1] == 199
    assert len(set(spread(range(200), 12))) == 12
    assert spread(range(3), 12) == [0, 1, 2]


def test_each_picture_is_there_once(told: Any, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    data = gallery(told(a=[record(n, images=[file]) for n in range(5)]), ["ct"], PROTOCOLS)
    assert len(data["pictures"]) == 1
    assert [question["pictures"] for question in data["questions"]] == [[0]] * 5


def test_pictures_are_left_out_where_they_are_not_wanted(told: Any, tmp_path: Path) -> None:
    rows = told(a=[record(0, images=[picture(tmp_path / "a.png")])])
    data = gallery(rows, ["ct"], PROTOCOLS, images=False)
    assert data["pictures"] == data["questions"][0]["pictures"] == []


def test_thumbnail_is_a_small_jpeg(tmp_path: Path) -> None:
    small = opened(thumbnail(picture(tmp_path / "a.png")))
    assert (small.format, small.size, small.mode) == ("JPEG", (EDGE, EDGE // 2), "RGB")
    assert opened(thumbnail(picture(tmp_path / "b.png", (56, 30)))).size == (56, 30)


def test_thumbnail_stands_upright(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    assert opened(thumbnail(picture(tmp_path / "a.jpg", exif=exif))).size == (EDGE // 2, EDGE)


def test_thumbnail_says_nothing_else_of_its_file(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"
    jpeg = thumbnail(picture(tmp_path / "a.jpg", comment=b"Jane Doe", exif=exif))
    assert jpeg and b"Jane" not in base64.b64decode(jpeg)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_picture_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    assert thumbnail(str(tmp_path / "a.png")) is None


def test_a_cut_picture_is_none(tmp_path: Path) -> None:
    whole = Path(picture(tmp_path / "a.png")).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert thumbnail(str(tmp_path / "a.png")) is None


def test_palettes_and_greys_are_shown(tmp_path: Path) -> None:
    from PIL import Image

    for mode in ("P", "L", "1", "LA", "RGBA", "CMYK"):
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (300, 300)).save(tmp_path / f"{mode}.{suffix}")
        assert opened(thumbnail(str(tmp_path / f"{mode}.{suffix}"))).size == (EDGE, EDGE)

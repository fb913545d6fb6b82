"""What counts as the same answer, what never does, and that every group of the table stands on its ground."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmft.evaluation.terms import TABLE, Group, canonical, digest, groups, plain, same, target

ANTONYMS: list[list[str]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["antonyms"]
FORMS = [(form, group) for group in groups() for form in group.forms]


@pytest.fixture(scope="module")
def train_answers(real_data: Path) -> list[str]:
    """The training answers of SLAKE, both languages, and of VQA-RAD."""
    slake = json.loads((real_data / "slake" / "train.json").read_text(encoding="utf-8"))
    vqa_rad = json.loads((real_data / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = [*slake, *(row for row in vqa_rad if not row["phrase_type"].startswith("test_"))]
    return sorted({str(row["answer"]) for row in rows})


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("The  Left-Lung.", "left lung"),
        ("T2/FLAIR", "t2 flair"),
        ("Right Lung,Upper Left", "right lung upper left"),
        ("ＣＴ", "ct"),
        ("T₂", "t2"),
        ("T2*-weighted", "t2 star weighted"),
        ("**T2**", "t2"),
        ("patient's skin", "patients skin"),
        ('The "liver"', "liver"),
        ("an MRI", "mri"),
        ("a X-ray", "x ray"),
        ("a 5 cm mass", "5 cm mass"),
        ("A", "a"),
        ("the", "the"),
        ("A, B", "a b"),
        ("A B", "a b"),
        ("A and B", "a and b"),
        ("hepatitis A", "hepatitis a"),
        ("肺。", "肺"),
        ("生物转化、解毒", "生物转化解毒"),
        ("CT 扫描", "ct扫描"),
        ("左肺， 右侧", "左肺右侧"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("3.4 cm.", "3.4 cm"),
        ("1,000", "1000"),
        ("10-20 minutes", "10-20 minutes"),
        ("L2-3", "l2-3"),
        ("−3", "-3"),
        ("35 %", "35%"),
        ("10^9", "10^9"),
        ("37 °C", "37 °c"),
        ("ER+", "er+"),
        ("ER+肺", "er+肺"),
        ("X-光", "x光"),
        ("< 5 cm", "< 5 cm"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_plain(text: str, spelling: str) -> None:
    assert plain(text) == spelling


@pytest.mark.parametrize(("form", "group"), FORMS, ids=[form for form, _ in FORMS])
def test_every_form_has_its_groups_canonical_and_that_is_a_fixed_point(form: str, group: Group) -> None:
    assert canonical(form) == plain(group.canonical)
    assert canonical(canonical(form)) == canonical(form)
    assert same(form, group.canonical) and same(group.canonical.upper(), form)
    assert target(target(form)) == target(form)
    assert canonical(target(form)) == canonical(form)


@pytest.mark.parametrize(
    ("pred", "gold"),
    [
        ("plain film", "X-Ray"),
        ("xray", "X ray"),
        ("X光", "x-ray"),
        ("Magnetic resonance imaging.", "MRI"),
        ("T2-weighted", "T2"),
        ("MR - Flair", "FLAIR"),
        ("Axial", "Transverse  Plane"),
        ("横断面", "axial plane"),
        ("posterior-anterior", "PA"),
        ("有", "Yes"),
        ("不包含", "否"),
        ("two", "2"),
        ("两", "two"),
        ("The lungs", "肺"),
        ("oesophagus", "Esophagus"),
        ("Left upper lobe", "左上叶"),
        ("right", "Right side"),
        ("something unknown", "Something  unknown!"),
    ],
)
def test_these_are_the_same(pred: str, gold: str) -> None:
    assert same(pred, gold) and same(gold, pred)


@pytest.mark.parametrize(
    ("pred", "gold"),
    [
        ("Heart, Lung", "Lung, Heart"),
        ("the lungs and the heart", "Lung,Heart"),
        ("心脏和肝脏", "Liver; Heart"),
        ("肝脏、心脏", "心脏，肝脏"),
        ("lung, heart, and liver", "Liver, Heart and Lung"),
        ("Brain oedema, brain tumour", "Brain Tumor, Brain Edema"),
        ("right kidney and left lung", "Left lung, right kidney."),
    ],
)
def test_lists_are_the_same_in_any_order(pred: str, gold: str) -> None:
    assert same(pred, gold) and same(gold, pred)


@pytest.mark.parametrize(
    ("pred", "gold"),
    [
        ("no finding", "no"),
        ("contrast ct", "ct"),
        ("non-contrast CT", "CT"),
        ("left lung", "lung"),
        ("chest x-ray", "x-ray"),
        ("yes and no", "yes"),
        ("nothing", "no"),
        ("none", "0"),
        ("tumor", "brain tumor"),
        ("gallbladder", "bladder"),
        ("T2*", "T2"),
        ("T2 FLAIR", "T2"),
        ("small intestine", "large intestine"),
        ("left lung, right kidney", "right lung, left kidney"),
        ("Left Lung, Right", "Right Lung, Left"),
        ("左肺, 右侧", "右肺, 左侧"),
        ("lung", "lung, heart"),
        ("lung, heart", "lung"),
        ("lung, heart, liver", "lung, heart"),
        ("effusion, no mass", "no mass, effusion"),  # the gold may deny both
        ("积液和无气胸", "无气胸和积液"),
        ("05", "0.5"),
        ("1020", "10-20"),
        ("35", "35%"),
        ("B", "A, B"),
        ("", "?"),
        ("", "a"),
    ],
)
def test_these_are_not_the_same(pred: str, gold: str) -> None:
    assert not same(pred, gold) and not same(gold, pred)


@pytest.mark.parametrize(("one", "other"), ANTONYMS, ids=map("/".join, ANTONYMS))
def test_antonyms_never_meet(one: str, other: str) -> None:
    for pattern in ("{}", "{} lung", "The {}.", "{}肺", "{} lung, {} kidney", "brain and {}"):
        here, there = pattern.replace("{}", one), pattern.replace("{}", other)
        assert not same(here, there) and not same(there, here)
    crossed = (f"{one} lung, {other} kidney", f"{other} lung, {one} kidney")
    assert not same(*crossed) and not same(*reversed(crossed))
    assert canonical(target(one)) != canonical(target(other))


def words(form: str) -> set[str]:
    """Its words; of a Chinese form its characters."""
    return set(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", plain(form)))


@pytest.mark.parametrize("group", groups(), ids=[group.canonical for group in groups()])
def test_no_group_holds_an_antonym_in_a_longer_form(group: Group) -> None:
    pairs = [
        ["左", "右"],
        ["上", "下"],
        ["高", "低"],
        ["小", "大"],
        ["small", "large"],
        ["both", "left"],
        ["both", "right"],
    ]
    pairs += [pair for pair in ANTONYMS if "".join(pair).isascii() and len(words(pair[0])) == len(words(pair[1])) == 1]
    for one, other in pairs:
        here, there = words(one), words(other)
        for first, second in product(group.forms, repeat=2):
            assert not (here <= words(first) - words(second) and there <= words(second) - words(first)), (first, second)


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("Axial", "Transverse Plane"),
        ("axial", "transverse plane"),
        ("Transverse  Plane", "Transverse Plane"),
        ("xray", "x-ray"),
        ("X ray", "X-Ray"),
        ("magnetic resonance imaging", "MRI"),
        ("ultrasonography", "ultrasound"),
        ("Ultrasonography", "Ultrasound"),
        ("The liver", "Liver"),
        ("YES", "Yes"),
        ("One", "1"),
        ("Noudle", "Nodule"),
        ("Tumours", "Tumor"),
        ("没有", "不是"),
        ("肝", "肝脏"),
        ("X线", "X光"),
        ("T1加权", "T1"),
        ("两", "2"),
        ("Brain tumour,Brain oedema", "Brain Tumor,Brain Edema"),
        ("Left side and Top", "Left and Top"),
        ("肺脏、肝", "肺、肝脏"),
        ("肾和脾", "肾脏和脾脏"),
        ("Left Lung, Right", "Left Lung, Right"),
        ("  Unknown  thing, (odd) ", "  Unknown  thing, (odd) "),
        ("No finding.", "No finding."),
        ("1,000", "1,000"),
        ("", ""),
    ],
)
def test_target(answer: str, form: str) -> None:
    assert target(answer) == form


def test_every_train_answer_is_the_same_as_itself_and_as_its_target(train_answers: list[str]) -> None:
    assert len(train_answers) > 900
    for answer in train_answers:
        assert same(answer, answer)
        assert same(target(answer), answer), answer
        assert target(target(answer)) == target(answer)


def test_observed_forms_occur_in_train_answers(train_answers: list[str]) -> None:
    parts = [part for answer in train_answers for part in re.split(r"[,，、;]|\band\b", answer)]
    seen = {plain(text) for text in train_answers + parts}
    missing = [form for form, group in FORMS if group.ground[0] == "source" and plain(form) not in seen]
    assert missing == []


def test_every_group_has_more_than_one_form_and_a_ground_of_its_own() -> None:
    grounds = [group.ground for group in groups() if group.ground[0] != "source"]
    assert len(grounds) == len(set(grounds))
    assert all(len({plain(form) for form in group.forms}) > 1 for group in groups())


def test_the_digest_is_of_the_tables_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    assert re.fullmatch("[0-9a-f]{8}", before)
    changed = tmp_path / "terms.yaml"
    changed.write_bytes(TABLE.read_bytes() + b"\n")
    monkeypatch.setattr("vlmft.evaluation.terms.TABLE", changed)
    assert digest() != before


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            "[{canonical: Lung, forms: [lung], mesh: D008168}, {canonical: Heart, forms: [heart, LUNG], qid: Q1}]",
            "the form 'lung' is in two groups, 'Lung' and 'Heart'",
        ),
        ("[{canonical: Lung, forms: [lung, lungs]}]", "has to stand on one ground.* it has none"),
        ("[{canonical: Lung, forms: [lung], mesh: D008168, source: observed}]", "has to stand on one ground"),
        ("[{canonical: Lung, forms: [lung], mesh: lung}]", "has to stand on one ground"),
        ("[{canonical: Lung, forms: [lung], book: D008168}]", "has to stand on one ground"),
        ("[{canonical: Lung, forms: [lungs], mesh: D008168}]", "`canonical` 'Lung' is not among its forms"),
        ("[{canonical: Lung, zh: 肺脏, forms: [lung, 肺], mesh: D008168}]", "`zh` '肺脏' is not among its forms"),
        ("[{canonical: Lung, forms: [lung, 肺], mesh: D008168}]", "has Chinese forms and no `zh`"),
        ("[{canonical: Yes, forms: [yes], source: observed}]", "group 1: `canonical` and every form has to be a text"),
        ("[{canonical: '1', forms: ['1', 1], qid: Q199}]", "has to be a text"),
    ],
)
def test_a_table_that_is_not_well_formed_is_refused(tmp_path: Path, entries: str, message: str) -> None:
    file = tmp_path / "terms.yaml"
    file.write_text(f"groups: {entries}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        groups(file)

"""SLAKE, VQA-RAD and PathVQA: drawn slices, films and tiles in each publisher's layout."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmft.data.samples import dealt
from vlmft.data.sources._demo_pictures import QUARTERS, finish
from vlmft.data.sources.demo import SETS

SLAKE_IMAGES = {"train": 20, "validate": 6, "test": 8}
RAD_IMAGES = {"train": 24, "test": 8}
PATH_IMAGES = {"train": 20, "val": 6, "test": 7}

# Of SLAKE's pictures: organ in English and Chinese, location, and what a question of the knowledge graph asks for.
ORGANS = {
    "brain": ("Brain", "脑", "Brain", "Control the body"),
    "lungs": ("Lung", "肺", "Lung", "Breathe"),
    "liver": ("Liver", "肝脏", "Abdomen", "Produce bile"),
    "kidneys": ("Kidney", "肾脏", "Abdomen", "Filter the blood"),
}
RAD_ORGANS = {"brain": "HEAD", "lungs": "CHEST", "liver": "ABD", "kidneys": "ABD"}
RAD_TYPES = {"organ": "ORGAN", "table": "OTHER", "lesion": "PRES"}  # by factor: these are asked for
PATH_FACTORS = ("stain", "cells", "ink")


def write_slake(folder: Path, seed: int = 0) -> None:
    """Write train.json, validate.json, test.json and imgs/xmlab<N>/source.jpg: CT and X-Ray in two languages."""
    number = qid = 0
    for split, count in SLAKE_IMAGES.items():
        rng = random.Random(f"slake {seed} {split}")
        factors = {"picture": (*ORGANS, "film"), "ill": ("yes", "no"), "contained": ("yes", "no")}
        rows = []
        for facts in dealt(factors, count, rng):
            number += 1
            place = folder / "imgs" / f"xmlab{number}"
            place.mkdir(parents=True, exist_ok=True)
            organ = _draw_slake(facts, rng, place / "source.jpg")
            for asked in _ask_slake(facts, organ, rng):
                rows.append({"img_id": number, "img_name": f"xmlab{number}/source.jpg", **asked, "qid": qid})
                qid += 1
        (folder / f"{split}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def write_vqa_rad(folder: Path, seed: int = 0) -> None:
    """Write "VQA_RAD Dataset Public.json" with both splits, and "VQA_RAD Image Folder"."""
    place = folder / "VQA_RAD Image Folder"
    place.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for split, count in RAD_IMAGES.items():
        rng = random.Random(f"vqa_rad {seed} {split}")
        for n, (facts, asked) in enumerate(_asked("demo_ct", tuple(RAD_TYPES), count, rng)):
            name = f"synpic{(10_000 if split == 'train' else 20_000) + n}.jpg"
            finish(SETS["demo_ct"].draw(facts, rng), rng).save(place / name, quality=95)
            for factor, question, answer, kind in asked:
                row = {
                    "qid": len(rows) or "0",  # as published: a text in the first row, numbers below
                    "phrase_type": f"{'test_' if split == 'test' else ''}{rng.choice(('freeform', 'para'))}",
                    "qid_linked_id": f"drawn-{len(rows)}",
                    "image_case_url": "NULL",
                    "image_name": name,
                    "image_organ": RAD_ORGANS[facts["organ"]],
                    "evaluation": "not evaluated",
                    "question": question,
                    "question_rephrase": "NULL",
                    "question_relation": "NULL",
                    "question_frame": "NULL",
                    "question_type": RAD_TYPES[factor] if question[:5] != "Where" else "POS",
                    "answer": answer.capitalize() if rng.random() < 0.5 else answer,
                    "answer_type": kind,
                }
                rows.append(row)
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_pathvqa(folder: Path, seed: int = 0) -> None:
    """Write images/<split>/<split>_0000.jpg, qas/<split>/<split>_qa.pkl and qas/<split>_vqa.pkl."""
    asked_before = 0
    for split, count in PATH_IMAGES.items():
        rng = random.Random(f"pathvqa {seed} {split}")
        for place in (folder / "images" / split, folder / "qas" / split):
            place.mkdir(parents=True, exist_ok=True)
        short: list[dict[str, Any]] = []
        long: list[dict[str, Any]] = []
        for n, (facts, asked) in enumerate(_asked("demo_path", PATH_FACTORS, count, rng)):
            name = f"{split}_{n:04}"
            picture = finish(SETS["demo_path"].draw(facts, rng), rng)
            if n % 7 == 3:
                picture = picture.convert("CMYK")  # as about one in seven of the published pictures is
            picture.save(folder / "images" / split / f"{name}.jpg", quality=95)
            for _, question, answer, kind in asked:
                short.append({"image": name, "question": question, "answer": answer})
                long.append(
                    {
                        "img_id": name,
                        "question_id": asked_before + len(long),
                        "sent": question,
                        "label": {answer: 1},
                        "answer_type": "yes/no" if kind == "CLOSED" else "other",
                        "question_type": question.split()[0].lower(),
                    }
                )
        asked_before += len(long)
        for file, rows in ((f"{split}/{split}_qa.pkl", short), (f"{split}_vqa.pkl", long)):
            (folder / "qas" / file).write_bytes(pickle.dumps(rows, protocol=4))


def _asked(
    name: str, factors: tuple[str, ...], count: int, rng: random.Random
) -> Iterator[tuple[dict[str, str], list[tuple[str, str, str, str]]]]:
    """The facts of each picture of a demo set, and what is asked of it: factor, question, answer, OPEN or CLOSED."""
    demo = SETS[name]
    for facts in dealt(demo.factors, count, rng):
        # What is asked of few pictures, and of these for yes or no only, cannot be learned from so small a set.
        asks = [ask for ask in demo.asks if ask.factor in factors and not (ask.only and ask.yes)]
        asks = [ask for ask in asks if not ask.only or facts[ask.factor] in ask.only]
        yield facts, [(ask.factor, *ask.put(facts, demo.factors[ask.factor], rng)) for ask in asks]


def _draw_slake(facts: dict[str, str], rng: random.Random, file: Path) -> str:
    """Draw a slice of an organ, or a film of the chest; the organ that is to be seen."""
    ill = facts["ill"] == "yes"
    if facts["picture"] == "film":
        shown = {"part": "chest", "exposure": "well exposed", "screws": "none", "fracture": facts["ill"]}
        picture = SETS["demo_xray"].draw(shown, rng)
    else:
        lesion = rng.choice(list(QUARTERS)) if ill else "none"
        shown = {"organ": facts["picture"], "phase": "venous", "table": "no", "lesion": lesion}
        picture = SETS["demo_ct"].draw(shown, rng)
    finish(picture, rng).save(file, quality=95)
    return shown.get("organ", "lungs")


def _ask_slake(facts: dict[str, str], organ: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Five questions in English and three of them in Chinese, with SLAKE's keys but for ids."""
    modality = "X-Ray" if facts["picture"] == "film" else "CT"
    english, chinese, location, function = ORGANS[organ]
    contained, normal = facts["contained"] == "yes", facts["ill"] == "no"
    named, in_chinese, *_ = ORGANS[organ if contained else rng.choice([other for other in ORGANS if other != organ])]
    asked = (
        ("What modality is used to take this image?", modality, "en", "OPEN", "Modality"),
        ("What is the main organ in the image?", english, "en", "OPEN", "Organ"),
        (f"Does the picture contain {named.lower()}?", "Yes" if contained else "No", "en", "CLOSED", "Organ"),
        ("Is this image normal?", "Yes" if normal else "No", "en", "CLOSED", "Abnormality"),
        ("What is the function of the main organ in the image?", function, "en", "OPEN", "KG"),
        ("图中的主要器官是什么？", chinese, "zh", "OPEN", "Organ"),
        (f"图中包含{in_chinese}吗？", "包含" if contained else "不包含", "zh", "CLOSED", "Organ"),
        ("图像正常吗？", "正常" if normal else "不正常", "zh", "CLOSED", "Abnormality"),
    )
    for question, answer, language, kind, content in asked:
        known = content == "KG"
        yield {
            "question": question,
            "answer": answer,
            "q_lang": language,
            "location": location,
            "modality": modality,
            "answer_type": kind,
            "base_type": "kvqa" if known else "vqa",
            "content_type": content,
            "triple": [organ, "function", "_"] if known else ["vhead", "_", "_"],
        }

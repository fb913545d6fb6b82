"""What the benchmarks run on: questions of real sets and of made ones of the same shape, and models to run them on."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

from vlmft.data.load import load
from vlmft.data.question import Question, Turn
from vlmft.schema import AnswerStyle, Model, QuestionSet

LORA_TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj|.*language_model\..*down_proj"
_WORDS = "is there a lesion in the left lung how many which organ side of this slice large small normal"
_ANSWERS = ("yes", "no", "left lung", "liver", "two", "right", "CT", "brain")


def vqa_rad(folder: Path) -> list[Question]:
    """VQA-RAD's 1,797 training questions, as published."""
    return load(QuestionSet(name="vqa_rad", format="vqa_rad", path=str(folder)), "train").questions


def slake_shaped(folder: Path, images: int, questions: int = 11) -> list[Question]:
    """Drawn 512x512 JPEGs with 11 questions each, the shape of SLAKE's English questions (10.9 an image)."""
    from PIL import Image, ImageDraw, ImageFilter

    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    made = []
    for n in range(images):
        file = folder / f"{n}.jpg"
        if not file.exists():
            picture = Image.effect_noise((512, 512), 40).filter(ImageFilter.GaussianBlur(2)).convert("RGB")
            draw = ImageDraw.Draw(picture)
            for _ in range(6):
                x, y, size = (chance.randrange(40, 400) for _ in range(3))
                draw.ellipse((x, y, x + size / 3, y + size / 4), fill=(chance.randrange(256),) * 3)
            picture.save(file, quality=90)
        for k in range(questions):
            words = " ".join(chance.choice(_WORDS.split()) for _ in range(chance.randint(5, 9)))
            turn = Turn(f"{words}?", _ANSWERS[(n + k) % len(_ANSWERS)])
            made.append(Question(f"{n}.{k}", "slake_shaped", (str(file),), (turn,), "open"))
    return made


def pmc_vqa(folder: Path, rows: int) -> QuestionSet:
    """PMC-VQA, version 1, with a train.csv of `rows` made rows in the published form, without pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    words = _WORDS.split()
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["Figure_path", "Question", "Answer", *(f"Choice {x}" for x in "ABCD"), "Answer_label"])
        for n in range(rows):
            asked, *choices = (" ".join(chance.sample(words, k)) for k in (12, 3, 4, 5, 6))
            right = chance.choices(range(4), (14, 35, 37, 14))[0]  # as skewed as the published letters
            labelled = (f" {letter}:{choice} " for letter, choice in zip("ABCD", choices, strict=True))
            figure = f"PMC{1000000 + n // 3 * 2}_F{n % 3 + 1}.jpg"
            lines.writerow([figure, f" {asked}? ", choices[right], *labelled, "ABCD"[right]])
    return QuestionSet(name="pmc_vqa", format="pmc_vqa", path=str(folder))


def tiny(kind: str, cache: Path, max_pixels: int) -> Model:
    """The twin of a family, which answers in plain text."""
    return Model(
        name=kind, tiny=kind, path=str(cache / kind), max_pixels=max_pixels, answer_style=AnswerStyle.plain,
        lora_targets=LORA_TARGETS,
    )  # fmt: skip


def random_weights(kind: str, cache: Path, max_pixels: int, device: str) -> tuple[Model, Any]:
    """A model of the real size with random bfloat16 weights, and the twin's processor, whose token ids it takes."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vlmft.models.load import load_processor

    spec = tiny({"glm41v_random": "glm41v", "qwen3vl_4b_random": "qwen3vl"}[kind], cache, max_pixels)
    load_processor(spec)  # writes the twin
    small = AutoConfig.from_pretrained(spec.path)
    ids = {key: value for key, value in small.to_dict().items() if key.endswith("_token_id") and value is not None}
    sizes: dict[str, Any] = {}  # GLM-4.1V-9B's are the defaults of its config class
    if kind == "qwen3vl_4b_random":
        sizes = {
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
            },
            "vision_config": {
                "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
                "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
            },
            "tie_word_embeddings": True,
        }  # fmt: skip
    config = type(small)(**sizes, **ids)
    with torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config.eos_token_id = small.text_config.eos_token_id
    model.generation_config.pad_token_id = small.text_config.pad_token_id
    return spec, model

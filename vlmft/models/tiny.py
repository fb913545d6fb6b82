"""Tiny twins: real checkpoint folders of a model family with about half a million random parameters.

Everything after this file is the ordinary `from_pretrained` path, so a test on a twin is a test of the code that
loads the real model. `initializer_range` is 0.08 because at the usual 0.02 so small a model barely learns.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from vlmft.errors import DataError
from vlmft.files import read_json, whole_folder, write_json

# A twin is a function of this number and of torch's generator; raise it whenever what is written changes.
RECIPE = 1

SPECIAL_TOKENS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
    "<think>", "</think>", "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>",
]  # fmt: skip

# The family's form: no end-of-turn token of its own, a turn ends where the next role begins; thoughts leave history.
GLM_CHAT_TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'user' %}<|user|>
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{%- elif message.role == 'assistant' %}<|assistant|>
{% set text = message.content if message.content is string else message.content[0].text -%}
{%- if '</think>' in text and not loop.last %}{{ text.split('</think>')[-1].strip() }}
{%- else %}{{ text }}{% endif %}
{%- elif message.role == 'system' %}<|system|>
{{ message.content if message.content is string else message.content[0].text }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""

# What the tokenizer learns its few hundred merges from.
TOKENIZER_TEXT = """
Is there a lesion in the left lung? Is there a mass in the right lobe of the liver? Is the heart enlarged? yes no Yes No
What organ is shown in this image? Which side is affected? How many nodules are visible? What plane is this? axial
Is there evidence of pneumothorax? What modality was used to take this picture? CT MRI X-ray ultrasound pathology
Where is the abnormality located? left right upper lower top bottom liver kidney lung brain spleen heart stomach colon
Is this a chest x-ray or a CT scan? What is the diagnosis? Does the picture contain a fracture? What stain was used?
none one two three four zero normal abnormal mild moderate severe present absent the a an of in on with and or to is are
Which view is this? frontal lateral posterior anterior What kind of cells are seen? hematoxylin and eosin tumor tissue
Is contrast used? arterial venous phase What color is the stained region? pink purple blue brown Is the bone intact?
Which organ does this slice show? Does this slice show the kidneys? Where in the slice does the focal lesion lie?
Is the scanner table visible? Is this a venous scan? Which contrast phase was scanned? How is the film exposed?
What part of the body was imaged? Is this a radiograph of the pelvis? How many screws are in place? Is a bone broken?
Has more than one screw been placed? Which stain was used? What kind of cells fill the field? Are these glandular cells?
How many mitotic figures are there? Are at least two cells dividing? Is the margin inked? Was trichrome the stain?
hand foot knee hip chest skull implant screw plate grade low high intermediate mitosis nucleus gland necrosis cyst
""".strip().splitlines()


def write_tiny(kind: str, folder: str | os.PathLike[str]) -> Path:
    """Write the twin `kind` ("glm41v") into `folder` unless it is there already, and return the folder.

    A twin of an older recipe is written anew. Raises DataError for an unknown kind, or for a folder that holds
    something else.
    """
    folder = Path(folder).expanduser()
    writers = {"glm41v": _write_glm41v}
    if kind not in writers:
        raise DataError(f"model.tiny={kind}: there is no such twin; there are {', '.join(sorted(writers))}")
    marker = folder / "tiny.json"
    if folder.exists():
        found = read_json(marker) or {}
        if found.get("kind") != kind:
            raise DataError(f"{folder} is not the tiny twin {kind}: remove it, or set model.path to another folder")
        if found["recipe"] == RECIPE:
            return folder
        shutil.rmtree(folder)
    with whole_folder(folder) as fresh:
        writers[kind](fresh)
        write_json(fresh / marker.name, {"kind": kind, "recipe": RECIPE})
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TOKENIZER_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _write_glm41v(folder: Path) -> None:
    import torch
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    tokenizer = _tokenizer()
    token = tokenizer.convert_tokens_to_ids
    pixels = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112}  # both temporal frames count
    Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(),
        chat_template=GLM_CHAT_TEMPLATE,
    ).save_pretrained(folder)
    config = Glm4vConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.08,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 2, 2],
            },
            "pad_token_id": token("<|endoftext|>"),
            "eos_token_id": [token("<|endoftext|>"), token("<|user|>"), token("<|observation|>")],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "image_size": 56,
            "out_hidden_size": 96,
            "intermediate_size": 128,
            "initializer_range": 0.08,
        },
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"),
        video_end_token_id=token("<|end_of_video|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Glm4vForConditionalGeneration(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.save_pretrained(folder)

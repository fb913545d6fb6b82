"""Twins of GLM-4.1V (dense) and GLM-4.5V (mixture of experts): one tokenizer and vision tower, two language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmft.models.tiny.tokenizer import VOCABULARY, tokenizer

SPECIAL_TOKENS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
    "<think>", "</think>", "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>",
]  # fmt: skip

# The family's form: no end-of-turn token of its own, a turn ends where the next role begins; thoughts leave history.
# GLM-4.5V leaves an empty thought in their place.
_CHAT_TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'user' %}<|user|>
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{%- elif message.role == 'assistant' %}<|assistant|>
{% set text = message.content if message.content is string else message.content[0].text -%}
{%- if '</think>' in text and not loop.last %}EMPTY_THOUGHT{{ text.split('</think>')[-1].strip() }}
{%- else %}{{ text }}{% endif %}
{%- elif message.role == 'system' %}<|system|>
{{ message.content if message.content is string else message.content[0].text }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
CHAT_TEMPLATE_41V = _CHAT_TEMPLATE.replace("EMPTY_THOUGHT", "")
CHAT_TEMPLATE_45V = _CHAT_TEMPLATE.replace("EMPTY_THOUGHT", "<think></think>\n")


def write_glm41v(folder: Path) -> None:
    """`Glm4vForConditionalGeneration`: 2 text layers of width 96, 3 vision layers of width 64."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    token = _write_processor(folder, CHAT_TEMPLATE_41V)
    text = _text_config(token) | {"intermediate_size": 192}
    _write_model(folder, Glm4vForConditionalGeneration, Glm4vConfig, text, token)


def write_glm45v(folder: Path) -> None:
    """`Glm4vMoeForConditionalGeneration`: a dense layer, then one of 4 routed experts (2 a token) and a shared one."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    token = _write_processor(folder, CHAT_TEMPLATE_45V)
    text = _text_config(token) | {
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    _write_model(folder, Glm4vMoeForConditionalGeneration, Glm4vMoeConfig, text, token)


def _write_processor(folder: Path, chat_template: str) -> Any:
    """Write tokenizer and processor; returns the function from a token to its id."""
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    words = tokenizer(SPECIAL_TOKENS, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    pixels = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112}  # both temporal frames count
    Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=pixels),
        tokenizer=words,
        video_processor=Glm4vVideoProcessor(),
        chat_template=chat_template,
    ).save_pretrained(folder)
    return words.convert_tokens_to_ids


def _text_config(token: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 2, 2],
        },
        "pad_token_id": token("<|endoftext|>"),
        "eos_token_id": [token("<|endoftext|>"), token("<|user|>"), token("<|observation|>")],
    }


def _write_model(folder: Path, model_class: Any, config_class: Any, text: dict[str, Any], token: Any) -> None:
    config = config_class(
        text_config=text,
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "image_size": 56,
            "out_hidden_size": 96,
            "intermediate_size": 128,
        },
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"),
        video_end_token_id=token("<|end_of_video|>"),
    )
    model = model_class(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.save_pretrained(folder)

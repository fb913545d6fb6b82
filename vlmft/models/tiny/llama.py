"""Twins of Llama-3.2-Vision (pictures by cross-attention) and of DeepSeek-R1-Distill-Llama (text only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmft.files import read_json, write_json
from vlmft.models.tiny.tokenizer import VOCABULARY, tokenizer

# <|image|> is not among them: its id lies behind the vocabulary that the head has logits for, as in the family.
LLAMA_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<think>", "</think>", "<answer>", "</answer>",
]  # fmt: skip
DEEPSEEK_TOKENS = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
    "<think>", "</think>", "<answer>", "</answer>",
]  # fmt: skip

# The family's form: where no message shows a picture, a system message tells the date of the day.
LLAMA_TEMPLATE = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- set shown = namespace(pictures=0) %}
{%- for message in messages %}
{%- for part in message.content if part.type == 'image' %}{% set shown.pictures = shown.pictures + 1 %}{% endfor %}
{%- endfor %}
{%- if not shown.pictures %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string }}<|eot_id|>
{%- endif %}
{%- for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}<|image|>
{%- elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Contents have to be strings, and what stands before </think> leaves history.
DEEPSEEK_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' %}{{ '<｜Assistant｜>' + message.content.split('</think>')[-1] + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def write_llama32_vision(folder: Path) -> None:
    """`MllamaForConditionalGeneration`: 4 text layers of width 96, two of which look at up to 4 tiles of 28x28."""
    from tokenizers import AddedToken
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessor, MllamaProcessor

    words = _beginning_with_bos(LLAMA_TOKENS, eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>")
    words.add_tokens([AddedToken("<|image|>", special=True, normalized=False)])
    token = words.convert_tokens_to_ids
    MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4),
        tokenizer=words,
        chat_template=LLAMA_TEMPLATE,
    ).save_pretrained(folder)
    stop = [token("<|end_of_text|>"), token("<|eom_id|>"), token("<|eot_id|>")]
    config = MllamaConfig(
        text_config={
            **_TEXT,
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "bos_token_id": token("<|begin_of_text|>"),
            "eos_token_id": stop,
            "pad_token_id": token("<|finetune_right_pad_id|>"),
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 2 * 64,  # of the last layer and of that one
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=token("<|image|>"),
    )
    model = MllamaForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "gate" in name.rsplit(".", 1)[-1]:  # of a new model they are closed: it would not see pictures at all
            weight.data.fill_(0.5)
        elif name.endswith("class_embedding"):
            weight.data.fill_(0.0)
    _save(model, folder, stop, token("<|finetune_right_pad_id|>"))


def write_deepseek_r1(folder: Path) -> None:
    """`LlamaForCausalLM`: 2 layers of width 96, with a tokenizer and no processor."""
    from transformers import LlamaConfig, LlamaForCausalLM

    end = "<｜end▁of▁sentence｜>"
    words = _beginning_with_bos(DEEPSEEK_TOKENS, eos_token=end, pad_token=end)
    words.chat_template = DEEPSEEK_TEMPLATE
    words.save_pretrained(folder)
    # As the family's own repositories say, wrongly: their tokenizer is a byte-level one.
    said = read_json(folder / "tokenizer_config.json") or {}
    write_json(folder / "tokenizer_config.json", {**said, "tokenizer_class": "LlamaTokenizerFast"})
    token = words.convert_tokens_to_ids
    config = LlamaConfig(
        **_TEXT, num_hidden_layers=2, bos_token_id=token(DEEPSEEK_TOKENS[0]), eos_token_id=token(end)
    )  # fmt: skip
    _save(LlamaForCausalLM(config), folder, token(end), token(end))


def _beginning_with_bos(special_tokens: list[str], eos_token: str, pad_token: str) -> Any:
    """A tokenizer that begins every text with the first of the special tokens by itself, as the families' do."""
    from tokenizers.processors import TemplateProcessing

    words = tokenizer(special_tokens, eos_token=eos_token, pad_token=pad_token)
    words.bos_token = special_tokens[0]
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single=[special_tokens[0], "$A"], special_tokens=[(special_tokens[0], 0)]
    )
    return words


def _save(model: Any, folder: Path, stop: int | list[int], padding: int) -> None:
    model.generation_config.eos_token_id = stop
    model.generation_config.pad_token_id = padding
    model.save_pretrained(folder)

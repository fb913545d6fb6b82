"""What runs need: figures that are published, what real optimisers and caches keep, changes that are proposed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from tests.models.test_memory import real
from vlmft.chat.collate import collate_packs
from vlmft.chat.encode import Encoder
from vlmft.data.training_split import training_questions
from vlmft.models import row_sizes
from vlmft.models.load import load_config, load_model, load_processor
from vlmft.models.memory import MARGIN, key_value_bytes, sharded
from vlmft.models.needs import DOES_NOT_FIT, FITS, TIGHT, Needs, verdict
from vlmft.models.row_sizes import Batch, RowSizes
from vlmft.models.shape import optimizer_states
from vlmft.schema import Algorithm, Config, Packing
from vlmft.training.epochs import Epochs

GB = 10**9
Composed = Callable[..., Config]


@cache
def llama() -> Any:
    """DeepSeek-R1-Distill-Llama-8B."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip


def rows_of(tokens: int, visual: int, batch_size: int = 16) -> RowSizes:
    """Rows of one length, as if they were at hand."""
    means = {"tokens_per_question": tokens, "visual_tokens_per_question": visual, "questions_per_pack": 1}
    largest = {n: Batch(n * tokens, n * visual, n if visual else 0) for n in (1, 2, 4, 8, 16) if n <= batch_size}
    return RowSizes("", largest, means, tokens, 1000, at_hand=True)


@cache
def _shapes(family: str) -> dict[str, Any]:
    return {}


def needs_of(family: str, tokens: int = 1000, visual: int = 700) -> Needs:
    """With the shapes that other tests have counted: they depend on the settings alone, not on the rows."""
    needs = Needs(real(family), rows_of(tokens, visual))
    needs._shapes = _shapes(family)
    return needs


def test_glm_with_lora_is_tight_on_24_gb(composed: Composed) -> None:
    found = needs_of("glm41v").training(composed("model=glm41v"), 24 * GB)
    assert (found.micro_batch, found.checkpointing) == (1, True)
    assert verdict(found.need.total, 24 * GB) in (FITS, TIGHT)
    assert found.need.total > 20.6 * GB, "the bfloat16 weights alone"


def test_glm_whole_needs_more_than_80_gb(composed: Composed) -> None:
    found = needs_of("glm41v").training(composed("model=glm41v", "method=full"), 80 * GB)
    assert verdict(found.need.total, 80 * GB) == DOES_NOT_FIT
    assert found.need.weights + found.need.gradients + found.need.states == pytest.approx(16 * 10.29 * GB, rel=0.01)


def test_llama_with_lora_on_8_bits(composed: Composed) -> None:
    config = composed("model=glm41v", "method.quantization.load_in_8bit=true")
    config.model.lora_targets = r".*layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    needs = Needs(llama(), rows_of(4096, 0))
    for size in (24, 40):
        found = needs.training(config, size * GB)
        assert 9 * GB < found.need.total < 40 * GB and verdict(found.need.total, size * GB) == FITS


def test_llama_answers_in_16_and_in_8_bits(composed: Composed) -> None:
    for override, low, high in (
        ("method.batch_size=16", 15, 18),
        ("method.quantization.load_in_8bit=true", 9, 12),
    ):
        config = composed("model=glm41v_base", override, "eval.generation.batch_size=8")
        config.model.lora_targets = r".*layers\.\d+\.self_attn\.(q|k|v|o)_proj"
        found = Needs(llama(), rows_of(1000, 0)).evaluation(config)
        assert found.questions == 8 and found.tokens == 1064
        assert found.cache == 8 * 1064 * 32 * 2 * 8 * 128 * 2
        assert low * GB < found.total < high * GB


def test_qwen_whole_trains_on_one_gpu_of_24_gb_with_offload(composed: Composed) -> None:
    config = composed("model=qwen3vl_4b", "method=full")
    needs = needs_of("qwen3vl")
    now = needs.training(config, 24 * GB)
    assert verdict(now.need.total, 24 * GB) == DOES_NOT_FIT
    assert verdict(needs.on_each(config, "zero3_offload", 1, now), 24 * GB) == FITS


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_sharding_counts_as_deepspeed_does(ranks: int, composed: Composed) -> None:
    """Bytes per weight of estimate_zero2_ and estimate_zero3_model_states_mem_needs, DeepSpeed 0.19."""
    config = composed("model=qwen3vl_4b", "method=full")
    shape = needs_of("qwen3vl").shape(config)
    count = shape.parameters
    assert sharded(shape, "zero2", ranks) == pytest.approx(2 * count + 18 * count / ranks)
    offloaded = sharded(shape, "zero3_offload", ranks)
    assert sharded(shape, "zero3", ranks) - offloaded == pytest.approx(18 * count / ranks, rel=1e-6)
    assert 2 * GB <= offloaded < 4 * GB, "what is gathered at once"


def test_a_quantised_base_is_not_sharded(composed: Composed) -> None:
    few = needs_of("glm41v")
    config = composed("model=glm41v", "method.quantization.load_in_8bit=true")
    shape = few.shape(config)
    assert shape.quantized and sharded(shape, "zero3", 8) > shape.frozen_bytes > 9 * GB
    whole = few.shape(composed("model=glm41v"))
    assert sharded(whole, "zero3", 8) < whole.frozen_bytes / 3


def test_verdicts() -> None:
    assert [verdict(n, 100) for n in (85, 86, 100, 101)] == [FITS, TIGHT, TIGHT, DOES_NOT_FIT]
    assert MARGIN == 0.85


@pytest.mark.parametrize(
    ("family", "given", "size", "rows", "wanted"),
    [
        # Each cannot be had with what costs less.
        ("glm41v", ["hardware.micro_batch=16", "method.trainer.gradient_checkpointing=false"], 60, (1000, 700),
         ["hardware.micro_batch=2"]),
        ("glm41v", ["hardware.micro_batch=1", "method.trainer.gradient_checkpointing=false"], 26, (500, 300),
         ["method.trainer.gradient_checkpointing=true"]),
        ("glm41v", [], 25.7, (1300, 1280), ["model.max_pixels=501760"]),
        ("qwen3vl", ["method=full"], 24, (1000, 700), ["method=lora"]),
        ("glm41v", [], 24, (1000, 700), ["method.quantization.load_in_8bit=true"]),
        ("glm41v", [], 11, (1000, 700), ["method.quantization.load_in_4bit=true"]),
        ("glm41v", ["method=full"], 24, (1000, 700),
         ["method=lora", "method.quantization.load_in_8bit=true"]),
    ],
)  # fmt: skip
def test_a_proposed_change_is_the_cheapest_and_composes_to_a_run_that_fits(
    family: str, given: list[str], size: float, rows: tuple[int, int], wanted: list[str], composed: Composed
) -> None:
    model = {"glm41v": "glm41v", "qwen3vl": "qwen3vl_4b"}[family]
    config, needs = composed(f"model={model}", *given), needs_of(family, *rows)
    before = needs.training(config, size * GB)
    assert verdict(before.need.total, size * GB) != FITS
    overrides = needs.cheaper(config, size * GB)
    assert overrides == wanted
    typed = shlex.split(" ".join(overrides))
    changed = {override.partition("=")[0] for override in typed}
    kept = [override for override in given if override.partition("=")[0] not in changed]
    after = needs.training(composed(f"model={model}", *kept, *typed), size * GB)
    assert verdict(after.need.total, size * GB) == FITS


def test_a_quantised_method_that_is_proposed_keeps_its_lora(composed: Composed) -> None:
    method = composed("model=glm41v", "method=lora", "method.quantization.load_in_8bit=true").method
    assert method.quantization == {"load_in_8bit": True} and (method.peft or {})["r"] == 8
    preset = composed("method=lora").method.peft or {}
    from vlmft.models.needs import _LORA

    assert _LORA.items() <= preset.items(), "LoRA is proposed with the sizes of the preset"


def test_there_may_be_no_such_change(composed: Composed) -> None:
    assert needs_of("glm41v").cheaper(composed("model=glm41v"), 4 * GB) is None


def test_without_a_gpu_to_choose_for_the_smallest(composed: Composed) -> None:
    needs = needs_of("glm41v")
    found = needs.training(composed("model=glm41v"), None)
    assert (found.micro_batch, found.checkpointing) == (1, True)
    found = needs.training(composed("model=glm41v", "hardware.micro_batch=4"), None)
    assert found.micro_batch == 4 and found.batch.tokens == 4000


def test_on_a_cpu_as_the_worker_does_there(composed: Composed) -> None:
    needs = needs_of("qwen3vl")
    found = needs.training(composed("model=qwen3vl_4b", "hardware=cpu"), 24 * GB)
    assert (found.micro_batch, found.checkpointing) == (16, False)
    assert found.need.weights == pytest.approx(4 * 4.45 * GB, rel=0.01), "in float32"


def test_optimisers_keep_what_is_counted() -> None:
    from transformers.optimization import Adafactor

    weights = [torch.nn.Parameter(torch.randn(64, 256)), torch.nn.Parameter(torch.randn(8192))]
    for name, made in (
        ("adamw_torch_fused", torch.optim.AdamW(weights)),
        ("sgd", torch.optim.SGD(weights)),
        ("adagrad", torch.optim.Adagrad(weights)),
        ("rmsprop", torch.optim.RMSprop(weights)),
        ("adafactor", Adafactor(weights, lr=1e-3, relative_step=False, scale_parameter=False)),
    ):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        made.step()
        kept = sum(
            value.numel() * value.element_size()
            for state in made.state.values()
            for key, value in state.items()
            if torch.is_tensor(value) and key != "step"
        )
        counted, known = optimizer_states(name, weights)
        assert known and counted == pytest.approx(kept, rel=0.01), name
    count = sum(weight.numel() for weight in weights)
    assert optimizer_states("paged_adamw_8bit", weights) == (2 * count, True)
    assert optimizer_states("galore_adamw", weights) == (8 * count, False), "counted as AdamW"


def test_every_optimiser_that_is_counted_is_one_of_the_trainer() -> None:
    from transformers.training_args import OptimizerNames

    from vlmft.models.shape import _MOMENTS, _PER_WEIGHT

    assert {*_MOMENTS, *_PER_WEIGHT} <= {name.value for name in OptimizerNames}


def test_an_8_bit_optimiser_makes_room_for_more(composed: Composed) -> None:
    needs = needs_of("qwen3vl")
    plain = needs.training(composed("model=qwen3vl_4b", "method=full"), 80 * GB).need
    few = needs.training(composed("model=qwen3vl_4b", "method=full", "method.trainer.optim=adamw_8bit"), 80 * GB).need
    assert plain.states == 8 * 4 * few.states // 8 and few.total < plain.total


@pytest.mark.parametrize("family", ["glm41v", "qwen3vl"])
def test_the_cache_holds_what_is_counted(family: str, composed: Composed) -> None:
    model = load_model(composed(f"model=tiny_{family}").model, "float32")
    held = model(input_ids=torch.full((3, 20), 9), use_cache=True).past_key_values
    bytes_held = sum(tensor.nbytes for layer in held.layers for tensor in (layer.keys, layer.values))
    assert key_value_bytes(model.config, 60, 4) == bytes_held


@pytest.mark.parametrize("packing", ["image", "none"])
def test_the_largest_micro_batch_is_the_largest_that_is_trained(packing: str, composed: Composed) -> None:
    config = composed(
        "model=tiny_glm41v",
        "dataset=demo_ct",
        "dataset.max_rows=40",
        "method.batch_size=4",
        f"method.packing={packing}",
    )
    encoder = Encoder(load_processor(config.model), config.model.answer_style)
    rows = [row for q in training_questions(config.dataset, 0).train for row in encoder.train_rows(q)]
    method, token = config.method, encoder.image_token_id
    found = row_sizes.of_rows(rows, [], method, load_config(config.model).model_type, token, 0, "")
    assert list(found.largest) == [1, 2, 4] and found.longest == max(len(row.input_ids) for row in rows)
    for size, largest in found.largest.items():
        epochs = Epochs(rows, token, batch_size=4, micro_batches=4 // size, seed=0, max_tokens=method.max_row_tokens,
                        most=16 if packing == "image" else 1)  # fmt: skip
        trained = [collate_packs(encoder, epochs[n])["input_ids"] for n in range(len(epochs))]
        same = [ids for ids in trained if ids.numel() == largest.tokens]
        assert any(int((ids == token).sum()) == largest.visual for ids in same)
        assert largest.tokens >= 0.9 * max(ids.numel() for ids in trained)


def test_rows_that_are_made_up(composed: Composed) -> None:
    config = composed("model=glm41v", "method.max_row_tokens=2000")
    rows = row_sizes.made_up(real("glm41v"), config.model, config.method, "said")
    assert rows.largest[4] == Batch(8000, 4 * 1280, 4), "1003520 pixels, 28 x 28 of them a token"
    assert rows.batch(4, 640) == Batch(8000, 4 * 640, 4), "rows may be as long with smaller pictures"
    at_hand = replace(rows, at_hand=True)
    assert at_hand.batch(4, 640) == Batch(8000 - 4 * 640, 4 * 640, 4)
    assert row_sizes.made_up(llama(), config.model, config.method, "").largest[1] == Batch(2000, 0, 0)
    pairs = replace(config.method, algorithm=Algorithm.dpo)
    assert row_sizes.made_up(real("glm41v"), config.model, pairs, "").largest[4] == Batch(4 * 2720, 4 * 1280, 4)
    apart = replace(pairs, packing=Packing.none)
    assert row_sizes.made_up(real("glm41v"), config.model, apart, "").largest[4] == Batch(16000, 8 * 1280, 8)

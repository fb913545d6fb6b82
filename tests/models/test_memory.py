"""The estimate against what autograd keeps, and against the sizes of the models in use."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmft.chat.encode import Encoder
from vlmft.data.training_split import training_questions
from vlmft.hardware import Decisions, divisors
from vlmft.models.load import freeze, load_config, load_model, load_processor
from vlmft.models.memory import activations, choose, fitted, resting
from vlmft.models.shape import Shape, shape_of
from vlmft.schema import Config, Freeze, Method, Model

GIB = 2**30
ATTENTION = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
EVERYWHERE = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|gate_up|down)_proj)"
LORA = Method(peft={"r": 8, "lora_alpha": 16})
FULL = Method(peft=None)
SPECIAL = {"image_token_id": 5, "video_token_id": 6}
FAMILIES = ("glm41v", "glm45v", "qwen3vl")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer over such small tensors than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def wide(family: str) -> Any:
    """Four text layers of width 256 and four vision layers of width 128."""
    from transformers import Glm4vConfig, Glm4vMoeConfig, Qwen3VLConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    text = {"vocab_size": 640, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 32}  # fmt: skip
    vision = {"depth": 4, "hidden_size": 128, "num_heads": 4, "intermediate_size": 512, "out_hidden_size": 256}
    if family == "qwen3vl":
        text["rope_parameters"] = rope | {"mrope_section": [6, 5, 5]}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [1]}
        return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **SPECIAL)
    text["rope_parameters"] = rope | {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
    vision["image_size"] = 56
    if family == "glm41v":
        return Glm4vConfig(text_config=text, vision_config=vision, **SPECIAL)
    text |= {"moe_intermediate_size": 96, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
             "first_k_dense_replace": 1}  # fmt: skip
    return Glm4vMoeConfig(text_config=text, vision_config=vision, **SPECIAL)


@cache
def real(family: str) -> Any:
    """The published sizes."""
    from transformers import Glm4vConfig, Qwen3VLConfig

    if family == "glm41v":
        return Glm4vConfig()  # its defaults are GLM-4.1V-9B
    return Qwen3VLConfig(
        text_config={"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936},
        vision_config={"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
                       "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]},
        tie_word_embeddings=True,
    )  # fmt: skip


@cache
def real_shape(family: str, lora: bool) -> Shape:
    method, dtype = (LORA, "bfloat16") if lora else (FULL, "float32")
    return shape_of(real(family), Model(lora_targets=EVERYWHERE), method, dtype)


def batch(config: Any, rows: int, text: int = 60, side: int = 16) -> dict[str, Any]:
    """Rows of a picture of side x side patches and `text` tokens, the last of them padded."""
    visual, patch = side**2 // 4, config.vision_config.patch_size
    ids = torch.full((rows, visual + text), 9)
    ids[:, 2 : 2 + visual] = config.image_token_id
    mask = torch.ones_like(ids)
    mask[-1, -3:] = 0
    return {
        "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.randn(rows * side**2, 6 * patch**2),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }  # fmt: skip


def built(config: Any, method: Method, targets: str, dtype: torch.dtype, frozen: Freeze) -> tuple[Any, Any]:
    """A real model for `config`, as it is trained, and the part of it that comes before the head."""
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    from vlmft.models.adapters import lora_config

    model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    freeze(model, **vars(frozen))
    trained: Any = model
    if method.peft is not None:
        trained = get_peft_model(model, lora_config(method, Model(lora_targets=targets)))
    return trained.train(), model.model


class Live(TorchDispatchMode):
    """The most bytes alive at once, of the tensors that are made within. Matrix products are zero, which is faster."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            result: Any = left.new_zeros(left.shape[0], right.shape[1])
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return result

    def free(self, key: int, count: int) -> None:
        self.seen.discard(key)
        self.now -= count


def kept(trained: Any, backbone: Any, inputs: dict[str, Any], autocast: bool) -> int:
    """Bytes of the storages that autograd holds after a forward pass, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*trained.parameters(), *trained.buffers())}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, Live(()), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = backbone(**inputs, use_cache=False).last_hidden_state
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def peak(trained: Any, backbone: Any, inputs: dict[str, Any]) -> int:
    """Bytes at the height of a forward and backward pass in float32, beside weights, gradients and inputs."""
    for weight in trained.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    gradients = [weight.grad for weight in trained.parameters() if weight.grad is not None]
    with Live([*trained.parameters(), *trained.buffers(), *gradients, *inputs.values()]) as seen:
        backbone(**inputs, use_cache=False).last_hidden_state.sum().backward()
    return seen.most


def growth(
    config: Any, lora: bool, *, checkpointing: bool, autocast: bool, backward: bool, frozen: Freeze | None = None
) -> float:
    """Estimated over measured bytes of two more rows: with `backward` at the height of a step, else kept by autograd.

    Of two more rows, since what does not grow (copies and new gradients of weights) is no part of the activations.
    Without the pixels, which are input in the measurement.
    """
    targets = ATTENTION if hasattr(config.get_text_config(), "moe_intermediate_size") else EVERYWHERE
    method, frozen = LORA if lora else FULL, frozen or Freeze()
    dtype = torch.bfloat16 if lora and autocast else torch.float32
    shape = shape_of(config, Model(lora_targets=targets, freeze=frozen), method, str(dtype).removeprefix("torch."))
    trained, backbone = built(config, method, targets, dtype, frozen)
    assert shape.parameters == sum(weight.numel() for weight in trained.parameters())
    assert shape.trainable == sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    if checkpointing:
        trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora:
            trained.enable_input_require_grads()
    measured, estimated = [], []
    for rows in (1, 3):
        inputs = batch(config, rows)
        tokens, visual = inputs["input_ids"].numel(), int(inputs["mm_token_type_ids"].sum())
        element = 2 if autocast else 4
        pixels = 4 * inputs["pixel_values"].numel()
        measured.append(peak(trained, backbone, inputs) if backward else kept(trained, backbone, inputs, autocast))
        estimated.append(activations(shape, tokens, visual, checkpointing, element, backward=backward) - pixels)
    return (estimated[1] - estimated[0]) / (measured[1] - measured[0])


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_keeps_what_is_estimated(family: str, lora: bool) -> None:
    """Storages in autograd's hands under bfloat16 autocast, as on a GPU."""
    config = wide(family)
    assert 0.7 < growth(config, lora, checkpointing=False, autocast=True, backward=False) < 1.3


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_peaks_where_estimated(family: str, lora: bool, checkpointing: bool) -> None:
    """All that lives at once in a forward and backward pass, in float32."""
    config = wide(family)
    assert 0.7 < growth(config, lora, checkpointing=checkpointing, autocast=False, backward=True) < 1.3


def test_a_frozen_vision_tower_keeps_nothing() -> None:
    frozen = Freeze(vision=True, projector=True)
    assert 0.7 < growth(wide("glm41v"), False, checkpointing=False, autocast=False, backward=True, frozen=frozen) < 1.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_is_estimated_too(family: str, composed: Callable[..., Config]) -> None:
    from transformers import AutoConfig

    from vlmft.models.load import source

    twin = composed(f"model=tiny_{family}", "method=full").model
    config = AutoConfig.from_pretrained(source(twin))
    shape, model = shape_of(config, twin, FULL, "float32"), load_model(twin, "float32")
    assert shape.parameters == shape.trainable == model.num_parameters()
    inputs = batch(config, 3)
    tokens, visual = inputs["input_ids"].numel(), int(inputs["mm_token_type_ids"].sum())
    measured = peak(model.train(), model.model, inputs)
    assert 0.5 < activations(shape, tokens, visual, False, 4) / measured < 1.5


def test_real_models_have_their_published_sizes() -> None:
    glm, qwen = real_shape("glm41v", lora=True), real_shape("qwen3vl", lora=False)
    assert (glm.parameters - glm.trainable) / 1e9 == pytest.approx(10.29, abs=0.01)
    assert glm.frozen_bytes / 1e9 == pytest.approx(20.6, abs=0.05)
    assert qwen.parameters / 1e9 == pytest.approx(4.438, abs=0.001)
    # 16 bytes a weight, the bfloat16 copies, and the newest gradient of the tied embedding
    assert resting(qwen, 2).total / 1e9 == pytest.approx(4.438 * 18 + 4 * 0.389, abs=0.1)
    four_bits = shape_of(
        real("glm41v"), Model(lora_targets=EVERYWHERE), Method(quantization={"load_in_4bit": True}), "bfloat16"
    )
    assert 6.5e9 < four_bits.frozen_bytes < 8.5e9, "all but embedding and head"


@pytest.mark.parametrize("checkpointing", [True, False])
def test_activations_grow_linearly_with_tokens(checkpointing: bool) -> None:
    shape = real_shape("qwen3vl", lora=False)
    sizes = [activations(shape, 350 * rows, 300 * rows, checkpointing, 2) for rows in (1, 2, 3)]
    assert len({after - before for before, after in pairwise(sizes)}) == 1 and sizes[1] == 2 * sizes[0]


def chosen(family: str, lora: bool, gib: float, **changed: Any) -> tuple[int, bool]:
    settings: dict[str, Any] = {"micro_batches": divisors(16), "tokens_per_question": 350,
                                "visual_tokens_per_question": 300} | changed  # fmt: skip
    return choose(real_shape(family, lora), free_bytes=int(gib * GIB), **settings)


def test_the_choice_suits_the_gpu() -> None:
    few, checkpointing = chosen("glm41v", True, 24)
    assert checkpointing and 1 <= few <= 4
    for family, lora in (("glm41v", True), ("qwen3vl", False)):
        many, checkpointing = chosen(family, lora, 139)
        assert not checkpointing and many >= 8
    few, checkpointing = chosen("qwen3vl", False, 80)
    qwen = real_shape("qwen3vl", lora=False)
    needed = resting(qwen, 2).total + activations(qwen, few * 350, few * 300, True, 2)
    assert checkpointing and needed < 80 * GIB, "it fits, though with less than the margin"
    assert chosen("qwen3vl", False, 24) == (1, True), "where nothing fits, the least"


def test_the_choice_divides_the_batch_and_counts_shared_pictures_once() -> None:
    assert chosen("glm41v", True, 139, micro_batches=divisors(6)) == (6, False)
    assert chosen("glm41v", True, 139, micro_batches=[1]) == (1, False)
    alone = chosen("glm41v", True, 80)
    packed = chosen("glm41v", True, 80, questions_per_pack=8, micro_batches=divisors(64))
    assert packed[0] > alone[0] and not packed[1]


def test_what_the_user_has_set_stays() -> None:
    assert chosen("glm41v", True, 139, micro_batches=[4]) == (4, False)
    assert chosen("glm41v", True, 139, checkpointing=True) == (16, True)
    assert chosen("glm41v", True, 24, checkpointing=False) == (1, False), "tried, though the estimate says no"


def test_the_rows_at_hand_decide(composed: Callable[..., Config]) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=60")
    encoder = Encoder(load_processor(config.model), config.model.answer_style)
    rows = [row for q in training_questions(config.dataset, 0).train for row in encoder.train_rows(q)]
    first = Decisions("cuda", "bfloat16", True, 2, True)

    def of(free: int, *overrides: str) -> tuple[int, bool]:
        changed = composed("model=tiny_glm41v", "dataset=demo_ct", *overrides)
        found = fitted(first, load_config(config.model), changed.model, changed.method, changed.hardware, rows,
                       encoder.image_token_id, free)  # fmt: skip
        return found.micro_batch, found.gradient_checkpointing

    assert of(10**10) == (16, False)
    low = of(4 * 10**6)
    assert low[0] < 16
    assert of(10**10, "hardware.micro_batch=2") == (2, False)
    assert of(10**10, "method.trainer.gradient_checkpointing=true") == (16, True)

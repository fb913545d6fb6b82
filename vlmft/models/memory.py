"""How much GPU memory training needs, estimated before anything is loaded, and the micro-batch that follows from it.

All numbers of the estimate are counts: weights from the model built on the meta device, and per layer the tensors that
autograd keeps for the backward pass. Not in it, and left to the margin: fragmentation, attention masks (a per mille of
the rest for each hundred tokens of a row), what lies before and after the layers, the scores of the labelled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmft.chat.encode import Row
from vlmft.chat.packing import groups, questions_per_row
from vlmft.hardware import Decisions, divisors
from vlmft.models.adapters import lora_config
from vlmft.models.load import auto_class, freeze
from vlmft.schema import Hardware, Method, Model

MARGIN = 0.85  # of the free memory; the rest is for the CUDA libraries, fragmentation and what is named above
_USEFUL = 8  # questions at a time, from which on a GPU is busy; fewer are worth checkpointing if that gives more
_NORM = 4  # bytes: norms compute in float32 whatever the element
_AFTER_NORM = ("q_proj", "k_proj", "v_proj", "qkv", "gate_proj", "up_proj", "gate_up_proj", "linear_fc1")
_INTO_MLP = ("gate_proj", "up_proj", "gate_up_proj", "linear_fc1")


@dataclass(frozen=True)
class Layers:
    """Equal layers of one tower; elements that one layer keeps per token (per patch in a vision tower)."""

    count: int
    hidden: int
    norms: int  # read by norms
    normalised: int  # kept by norms that learn, before they scale it
    reads: int  # read from norms by linear layers that learn, each counted by itself
    passes: int  # read by the other linear layers that learn, of attention and MLP
    attention: int  # queries, keys, values, result
    mlp: int  # what the activation function reads and gives, and what that is multiplied with
    experts: int  # the same and what is routed, of the experts a token is sent to
    expert_bytes: int  # per element; their product runs in the type of the weights, outside autocast
    residual_bytes: int  # per element of what goes from layer to layer; 0: nothing learns, so nothing is kept


@dataclass(frozen=True)
class Shape:
    """What the estimate needs to know of a model and of what is trained of it."""

    parameters: int
    trainable: int
    largest: int  # elements of the largest trainable tensor
    frozen_bytes: int  # of all weights that are not trained, quantised ones by their bits
    trainable_bytes: int  # per element
    text: Layers
    vision: Layers | None
    patches: int  # per visual token
    patch_values: int  # numbers of a patch, as the image processor gives them
    merger: int  # elements kept per visual token between the towers, 0 where nothing in the vision tower learns


def shape_of(config: Any, model: Model, method: Method, load_dtype: str) -> Shape:
    """The shape of a training run from a transformers config, without memory: the model is built on the meta device.

    `load_dtype` is `Decisions.load_dtype`. Raises DataError where LoRA has no targets.
    """
    import torch
    from peft import get_peft_model

    with torch.device("meta"):
        bare = auto_class(config).from_config(config, dtype=getattr(torch, load_dtype))
    freeze(bare, **vars(model.freeze))
    base = bare.model
    built: Any = bare if method.peft is None else get_peft_model(bare, lora_config(method, model))
    trained = [weight for weight in built.parameters() if weight.requires_grad]
    quantization = method.quantization or {}
    bits = 4.5 if quantization.get("load_in_4bit") else 8 if quantization.get("load_in_8bit") else None
    head = built.get_output_embeddings()
    # 4 bits and a float32 scale for each 64 of them. bitsandbytes takes the linear layers, but never the head.
    small = {id(module.weight) for module in built.modules() if isinstance(module, torch.nn.Linear)} - {id(head.weight)}
    frozen = 0.0
    for weight in built.parameters():
        if not weight.requires_grad:
            frozen += weight.numel() * (bits / 8 if bits and id(weight) in small else weight.element_size())
    visual = getattr(base, "visual", None)
    sizes: Any = getattr(config, "vision_config", None)
    text = getattr(base, "language_model", base)
    merger = 0
    if visual and any(weight.requires_grad for weight in visual.parameters()):
        # What each linear layer reads, and what it gives to an activation function.
        linear = [
            module
            for name, module in visual.named_modules()
            if isinstance(module, torch.nn.Linear) and "merger" in name
        ]
        merger = sum(module.in_features + module.out_features for module in linear)
    return Shape(
        parameters=sum(weight.numel() for weight in built.parameters()),
        trainable=sum(weight.numel() for weight in trained),
        largest=max((weight.numel() for weight in trained), default=0),
        frozen_bytes=int(frozen),
        trainable_bytes=max((weight.element_size() for weight in trained), default=0),
        text=_layers(text.layers, config.get_text_config(), learns=bool(trained)),
        # Gradients reach the tower only where something in it is trained; a frozen one keeps nothing.
        vision=visual and _layers(visual.blocks, sizes, any(p.requires_grad for p in visual.blocks.parameters())),
        patches=sizes.spatial_merge_size**2 if visual else 0,
        merger=merger,
        patch_values=sizes.in_channels * sizes.temporal_patch_size * sizes.patch_size**2 if visual else 0,
    )


def _layers(layers: Any, config: Any, learns: bool) -> Layers:
    """Count the last layer: in a mixture of experts the first ones are dense."""
    import torch

    layer, hidden = layers[-1], config.hidden_size
    widths: dict[str, int] = {}  # outputs of the linear layers by name; an MLP may have a part that all tokens share
    norms = normalised = reads = passes = 0
    for path, module in layer.named_modules():
        *_, name = path.removesuffix(".base_layer").split(".")
        if isinstance(module, torch.nn.Linear) and "lora_" not in path:
            widths[name] = module.out_features
            wrapper = layer.get_submodule(path.removesuffix(".base_layer"))
            if any(weight.requires_grad for weight in wrapper.parameters()):
                reads += module.in_features * (name in _AFTER_NORM)
                passes += module.in_features * (name not in _AFTER_NORM)
        elif type(module).__name__.endswith("Norm"):
            read = widths[name[0] + "_proj"] if name in ("q_norm", "k_norm") else hidden
            norms += read
            normalised += read * (module.weight.requires_grad and not isinstance(module, torch.nn.LayerNorm))
    into_mlp = sum(widths.get(name, 0) for name in _INTO_MLP)
    experts, routed, expert_bytes = getattr(layer.mlp, "experts", None), 0, 0
    if experts is not None:
        inner, weight = config.moe_intermediate_size, experts.gate_up_proj
        # Gate, up and the activated gate; the result, for the gradient of the routing; where they learn, both inputs.
        routed = config.num_experts_per_tok * (3 * inner + hidden + weight.requires_grad * (hidden + inner))
        expert_bytes = weight.element_size()
    # Training the weights themselves starts from float32, and the sum of the layers stays so under autocast.
    itself = next(layer.parameters())
    return Layers(
        count=len(layers),
        hidden=hidden,
        norms=norms,
        normalised=normalised,
        reads=reads,
        passes=passes,
        # With padding or packing there is a mask, for which transformers repeats keys and values to all heads. In a
        # vision tower the values are a view that keeps queries and keys from before the rotation, too.
        attention=4 * widths["q_proj"] if "q_proj" in widths else 2 * widths["qkv"],
        mlp=into_mlp * 3 // 2 if "linear_fc1" not in widths else into_mlp,
        experts=routed,
        expert_bytes=expert_bytes,
        residual_bytes=itself.element_size() if learns else 0,
    )


def weights_and_optimizer(shape: Shape, bytes_per_element: int) -> int:
    """Bytes of weights, gradients and AdamW's states on one rank that holds them all.

    `bytes_per_element` is of activations: 2 under bfloat16 autocast, else 4.
    """
    states = 4 * shape.trainable_bytes  # weight, gradient, and two moments, each of the weight's type
    # Autocast casts a trained weight once in a forward pass, and autograd keeps the copy.
    copies = bytes_per_element if shape.trainable_bytes > bytes_per_element else 0
    # The newest gradient of a tensor stands beside the sum of those before it; TRL's head makes it in float32.
    newest = 4 * shape.largest
    return shape.frozen_bytes + shape.trainable * (states + copies) + newest


def _kept(layers: Layers, bytes_per_element: int) -> int:
    """Bytes that autograd keeps of one layer and token."""
    # Under autocast every linear layer casts its own copy of a norm's float32 output. Without, they share the two.
    reads = layers.reads if bytes_per_element < _NORM else min(layers.reads, 2 * layers.hidden)
    plain = reads + layers.passes + layers.attention + layers.mlp
    return _NORM * (layers.norms + layers.normalised) + bytes_per_element * plain + layers.expert_bytes * layers.experts


def activations(
    shape: Shape, tokens: int, visual_tokens: int, checkpointing: bool, bytes_per_element: int, backward: bool = True
) -> int:
    """Bytes that one forward and backward pass keeps, of `tokens` tokens in all of which pictures give `visual_tokens`.

    Without `backward`: what the forward pass leaves behind.
    """
    pixels = 4 * shape.patch_values * shape.patches  # float32
    total = visual_tokens * (pixels + shape.merger * bytes_per_element)
    at_work = 0  # the largest layer of the backward pass
    for layers, count in ((shape.text, tokens), (shape.vision, shape.patches * visual_tokens)):
        if layers is None or not layers.residual_bytes:
            continue
        layer = count * _kept(layers, bytes_per_element)
        # Checkpointing keeps what goes into a layer, and computes the rest of one layer at a time again.
        total += layers.count * (count * layers.hidden * layers.residual_bytes if checkpointing else layer)
        # The gradients under way in a layer take half as much as it keeps: those of the MLP stand side by side.
        at_work = max(at_work, layer // 2 + (layer if checkpointing else 0))
    return total + (at_work if backward else 0)


def choose(
    shape: Shape,
    *,
    free_bytes: int,
    micro_batches: Sequence[int],
    checkpointing: bool | None = None,
    tokens_per_question: float,
    visual_tokens_per_question: float,
    questions_per_pack: float = 1,
    bytes_per_element: int = 2,
) -> tuple[int, bool]:
    """One of `micro_batches` (questions per forward pass and rank, ascending), and whether to use checkpointing.

    `checkpointing` is None where that is open. Tokens are means over ordinary rows, picture included; a pack of
    `questions_per_pack` questions (a mean, too) has its picture once. Where nothing fits, the smallest, checkpointed.
    """
    budget = MARGIN * free_bytes - weights_and_optimizer(shape, bytes_per_element)

    def most(checkpointed: bool) -> int:
        fitting = 0
        for questions in micro_batches:
            visual = -(-questions // questions_per_pack) * visual_tokens_per_question
            tokens = questions * (tokens_per_question - visual_tokens_per_question) + visual
            if activations(shape, int(tokens), int(visual), checkpointed, bytes_per_element) <= budget:
                fitting = questions
        return fitting

    if checkpointing is not None:
        return most(checkpointing) or micro_batches[0], checkpointing
    without = most(checkpointed=False)
    if without >= min(_USEFUL, micro_batches[-1]):
        return without, False
    checkpointed = most(checkpointed=True)
    return (without, False) if 0 < without >= checkpointed else (checkpointed or micro_batches[0], True)


def fitted(
    decisions: Decisions, config: Any, model: Model, method: Method, hardware: Hardware, rows: Sequence[Row],
    image_token_id: int | None, free_bytes: int,
) -> Decisions:  # fmt: skip
    """The decisions with the micro-batch and the checkpointing that fit the rows, where the user left these open.

    `config` is the model's transformers config, `free_bytes` what the device has before the model is loaded.
    """
    most = questions_per_row(method, config.model_type)
    packs = sum(-(-len(numbers) // most) for numbers, _ in groups(rows, image_token_id))
    visual = sum(row.input_ids.count(image_token_id) for row in rows) if image_token_id is not None else 0
    micro_batch, checkpointing = choose(
        shape_of(config, model, method, decisions.load_dtype),
        free_bytes=free_bytes,
        micro_batches=divisors(method.batch_size) if hardware.micro_batch == "auto" else [decisions.micro_batch],
        checkpointing=method.trainer.get("gradient_checkpointing"),
        tokens_per_question=sum(len(row.input_ids) for row in rows) / len(rows),
        visual_tokens_per_question=visual / len(rows),
        questions_per_pack=len(rows) / packs,
        bytes_per_element=2 if decisions.bf16 or decisions.load_dtype == "bfloat16" else 4,
    )
    return replace(decisions, micro_batch=micro_batch, gradient_checkpointing=checkpointing)

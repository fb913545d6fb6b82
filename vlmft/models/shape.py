"""The sizes of a model and of what is trained of it, counted on the meta device before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vlmft.models.adapters import lora_config
from vlmft.models.load import auto_class, freeze, part_of
from vlmft.schema import Method, Model

_AFTER_NORM = ("q_proj", "k_proj", "v_proj", "qkv", "gate_proj", "up_proj", "gate_up_proj", "linear_fc1")
_INTO_MLP = ("gate_proj", "up_proj", "gate_up_proj", "linear_fc1")
_ADDED = ("lora_", "modules_to_save", "trainable_tokens")  # what names a weight that PEFT adds
# Bytes an optimiser keeps per weight, by SFTConfig's `optim`; its moments in few bits, and none at all of plain SGD.
_PER_WEIGHT = {
    "sgd": 0, "adamw_torch_4bit": 1, "adamw_torch_8bit": 2, "adamw_8bit": 2, "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2, "paged_adamw_32bit": 8, "lion_8bit": 1, "lion_32bit": 4, "paged_lion_8bit": 1,
    "paged_lion_32bit": 4, "rmsprop_bnb_8bit": 1, "rmsprop_bnb": 4, "rmsprop_bnb_32bit": 4,
}  # fmt: skip
_MOMENTS = {"adamw_torch": 2, "adamw_torch_fused": 2, "adamw_torch_xla": 2, "rmsprop": 1, "adagrad": 1}  # like weights


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
class Part:
    """The weights of one part of a model."""

    parameters: int
    trainable: int
    bytes: int  # quantised ones by their bits


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
    parts: dict[str, Part]  # vision, projector, llm and adapters, as far as there are any
    state_bytes: int  # of the optimiser, all together
    counted_as_adamw: bool  # since what the optimiser keeps is not known here
    quantized: bool


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
    # 4 bits and a float32 scale for each 64 of them; of the linear layers, head and projector stay whole.
    small = {
        id(module.weight)
        for name, module in built.named_modules()
        if isinstance(module, torch.nn.Linear) and part_of(name) != "projector"
    } - {id(head.weight)}

    def size(weight: Any) -> float:
        few = bits is not None and not weight.requires_grad and id(weight) in small
        return float(weight.numel() * ((bits or 0) / 8 if few else weight.element_size()))

    frozen = sum(size(weight) for weight in built.parameters() if not weight.requires_grad)
    states, known = optimizer_states(method.trainer.get("optim"), trained)
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
        parts=_parts(built.named_parameters(), size),
        state_bytes=states,
        counted_as_adamw=not known,
        quantized=bits is not None,
    )


def optimizer_states(name: str | None, weights: Iterable[Any]) -> tuple[int, bool]:
    """Bytes that an optimiser keeps for the weights it trains, and whether `name` (SFTConfig's `optim`) is known.

    An unknown one is counted as AdamW.
    """
    sizes = [(tuple(weight.shape), weight.numel(), weight.element_size()) for weight in weights]
    name = getattr(name, "value", name) or "adamw_torch"
    if name == "adafactor":  # float32 sums over rows and columns, of a vector all of it
        kept = sum(count // shape[-1] + count // shape[-2] if len(shape) > 1 else count for shape, count, _ in sizes)
        return 4 * kept, True
    if name in _PER_WEIGHT:
        return _PER_WEIGHT[name] * sum(count for _, count, _ in sizes), True
    return _MOMENTS.get(name, 2) * sum(count * size for _, count, size in sizes), name in _MOMENTS


def _parts(named: Iterable[tuple[str, Any]], size: Callable[[Any], float]) -> dict[str, Part]:
    found: dict[str, list[Any]] = {part: [] for part in ("vision", "projector", "llm", "adapters")}
    for name, weight in named:
        found["adapters" if any(word in name for word in _ADDED) else part_of(name)].append(weight)
    return {
        part: Part(
            parameters=sum(weight.numel() for weight in weights),
            trainable=sum(weight.numel() for weight in weights if weight.requires_grad),
            bytes=int(sum(map(size, weights))),
        )
        for part, weights in found.items()
        if weights
    }


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

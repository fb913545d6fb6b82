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
from vlmft.chat.packing import groups, pack, questions_per_row
from vlmft.hardware import Decisions, divisors
from vlmft.models.shape import Layers, Shape, shape_of
from vlmft.schema import Hardware, Method, Model

MARGIN = 0.85  # of the free memory; the rest is for the CUDA libraries, fragmentation and what is named above
_USEFUL = 8  # questions at a time, from which on a GPU is busy; fewer are worth checkpointing if that gives more
_NORM = 4  # bytes: norms compute in float32 whatever the element
_MAX_LIVE = 10**9  # DeepSpeed's stage3_max_live_parameters: gathered weights that are not given back at once


@dataclass(frozen=True)
class Need:
    """Bytes of a training run on one GPU."""

    weights: int
    gradients: int
    states: int  # of the optimiser
    passing: int  # copies of weights in the type of activations, and the newest gradient
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.states + self.passing + self.activations

    def line(self, gpu_bytes: float) -> str:
        """The estimate in one line, beside the memory of a GPU."""
        learning = self.gradients + self.states + self.passing
        return (
            f"memory    {gb(self.weights)} weights, {gb(learning)} optimiser and gradients, {gb(self.activations)} "
            f"activations: {gb(self.total)} of {gb(gpu_bytes)}"
        )


def gb(count: float) -> str:
    """Bytes in GB of 10^9 (MB of 10^6 where that is too little to see), with one decimal."""
    return f"{count / 1e9:.1f} GB" if count == 0 or count >= 5e7 else f"{count / 1e6:.1f} MB"


def resting(shape: Shape, bytes_per_element: int) -> Need:
    """What one rank that holds them all needs for weights, gradients and the optimiser, without activations.

    `bytes_per_element` is of activations: 2 under bfloat16 autocast, else 4.
    """
    itself = shape.trainable * shape.trainable_bytes
    # Autocast casts a trained weight once in a forward pass, and autograd keeps the copy.
    copies = shape.trainable * bytes_per_element if shape.trainable_bytes > bytes_per_element else 0
    # The newest gradient of a tensor stands beside the sum of those before it; TRL's head makes it in float32.
    newest = 4 * shape.largest
    return Need(shape.frozen_bytes + itself, itself, shape.state_bytes, copies + newest)


def sharded(shape: Shape, strategy: str, ranks: int) -> int:
    """Bytes on each of `ranks` GPUs under DeepSpeed's zero2, zero3 or zero3_offload, without activations.

    DeepSpeed computes with bfloat16 weights and splits float32 weights, gradients and states over the ranks; offload
    has all of these in the host's memory. A quantised base stays whole on each GPU.
    """
    frozen, trained = shape.frozen_bytes, shape.trainable
    like_weights = shape.state_bytes == 2 * trained * shape.trainable_bytes
    split = 8 * trained + (8 * trained if like_weights else shape.state_bytes)
    if strategy == "zero2":
        return frozen + 2 * trained + (2 * trained + split) // ranks
    whole = frozen if shape.quantized else 0
    gathered = min(_MAX_LIVE, trained if shape.quantized else shape.parameters)
    there = 0 if strategy == "zero3_offload" else frozen - whole + 2 * trained + split
    return whole + 2 * gathered + 2 * shape.largest + there // ranks


def key_value_bytes(config: Any, tokens: int, bytes_per_element: int) -> int:
    """Bytes of the keys and values of `tokens` tokens in all layers, from a transformers config."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(tokens * text.num_hidden_layers * 2 * heads * width * bytes_per_element)


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
    at_rest: float | None = None,
) -> tuple[int, bool]:
    """One of `micro_batches` (questions per forward pass and rank, ascending), and whether to use checkpointing.

    `checkpointing` is None where that is open. Tokens are means over ordinary rows, picture included; a pack of
    `questions_per_pack` questions (a mean, too) has its picture once. `at_rest` are the bytes of a process that has but
    a part of weights and states. Where nothing fits, the smallest, checkpointed.
    """
    budget = MARGIN * free_bytes - (resting(shape, bytes_per_element).total if at_rest is None else at_rest)

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
    possible = divisors(method.batch_size // decisions.ranks)
    shape, at_rest = shape_of(config, model, method, decisions.load_dtype), None
    if decisions.engine != "ddp":
        on_host = bool((hardware.deepspeed.get("zero_optimization") or {}).get("offload_param"))
        strategy = "zero2" if decisions.engine in ("zero1", "zero2") else "zero3_offload" if on_host else "zero3"
        at_rest = sharded(shape, strategy, decisions.ranks)
    micro_batch, checkpointing = choose(
        shape,
        free_bytes=free_bytes,
        at_rest=at_rest,
        micro_batches=possible if hardware.micro_batch == "auto" else [decisions.micro_batch],
        checkpointing=method.trainer.get("gradient_checkpointing"),
        bytes_per_element=2 if decisions.bf16 or decisions.load_dtype == "bfloat16" else 4,
        **typical(rows, questions_per_row(method, config.model_type), image_token_id),
    )
    return replace(decisions, micro_batch=micro_batch, gradient_checkpointing=checkpointing)


def typical(rows: Sequence[Row], most: int, image_token_id: int | None) -> dict[str, float]:
    """Means over the rows as `choose` takes them, where at most `most` questions share a row."""
    packs = sum(-(-len(numbers) // most) for numbers, _ in groups(rows, image_token_id))
    alone = [pack([row], int(most > 1)) for row in rows]
    shown = [one.rows if one.prefix else one.branches for one in alone]
    images = (row.input_ids.count(image_token_id) for one in shown for row in one if image_token_id is not None)
    return {
        "tokens_per_question": sum(one.tokens for one in alone) / len(rows),
        "visual_tokens_per_question": sum(images) / len(rows),
        "questions_per_pack": len(rows) / packs,
    }

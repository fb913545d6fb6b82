"""What a run needs of a GPU's memory, whether that fits, and the cheapest change of settings with which it would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmft.chat.encode import Row
from vlmft.evaluation.batches import batches
from vlmft.hardware import Decisions, divisors, micro_batch
from vlmft.models.load import load_config
from vlmft.models.memory import MARGIN, Need, activations, choose, key_value_bytes, resting, sharded
from vlmft.models.row_sizes import Batch, RowSizes, of_rows, visual_tokens
from vlmft.models.shape import Shape, shape_of
from vlmft.schema import Config, Device, Dtype

FITS, TIGHT, DOES_NOT_FIT = "fits", "tight", "does not fit"
STRATEGIES = ("zero2", "zero3", "zero3_offload")
RANKS = (2, 4, 8)
_SMALLEST_PICTURE = 65_536  # pixels, 256 x 256; below it little is left to see
_LORA = {"r": 8, "lora_alpha": 16}  # as conf/method/lora.yaml


@dataclass(frozen=True)
class Training:
    """The largest micro-batch of a run on one GPU, and what it needs."""

    need: Need
    micro_batch: int
    checkpointing: bool
    batch: Batch


@dataclass(frozen=True)
class Evaluation:
    """The largest batch of answers that are generated together; the cache holds the keys and values of its tokens."""

    weights: int
    cache: int
    questions: int
    tokens: int  # of each question, the answer included

    @property
    def total(self) -> int:
        return self.weights + self.cache


def verdict(needed: float, gpu_bytes: float) -> str:
    """FITS with the margin, TIGHT within it, or DOES_NOT_FIT."""
    return FITS if needed <= MARGIN * gpu_bytes else TIGHT if needed <= gpu_bytes else DOES_NOT_FIT


def types(config: Config) -> tuple[str, int]:
    """The type in which weights are loaded, and the bytes of an activation, on a GPU with bfloat16 (or on a CPU)."""
    wanted, cpu = config.model.dtype, config.hardware.device is Device.cpu
    if wanted is Dtype.auto:
        loaded = "bfloat16" if config.method.peft is not None and not cpu else "float32"
        return loaded, 4 if cpu else 2
    return wanted.value, 2 if wanted is Dtype.bfloat16 else 4


def of_run(config: Config, rows: Sequence[Row], image_token_id: int | None, decisions: Decisions) -> Need:
    """What the training that `decisions` were made for needs of a GPU, by its largest micro-batch."""
    model_config = load_config(config.model)
    sizes = of_rows(rows, [], config.method, model_config.model_type, image_token_id, config.seed, "")
    return Needs(model_config, sizes).step(config, decisions.micro_batch, decisions.gradient_checkpointing).need


class Needs:
    """The needs of a run and of its variations, for one transformers config and the sizes of its rows."""

    def __init__(self, model_config: Any, rows: RowSizes) -> None:
        self.model_config, self.rows = model_config, rows
        self._shapes: dict[str, Shape] = {}

    def shape(self, config: Config) -> Shape:
        loaded, _ = types(config)
        key = repr((config.method.peft, config.method.quantization, config.method.trainer.get("optim"), loaded))
        if key not in self._shapes:
            self._shapes[key] = shape_of(self.model_config, config.model, config.method, loaded)
        return self._shapes[key]

    def training(self, config: Config, gpu_bytes: float | None) -> Training:
        """With the micro-batch and checkpointing that the worker would choose on such a GPU, where they are open.

        Without a GPU to choose for: the smallest micro-batch, checkpointed.
        """
        method, wanted = config.method, config.hardware.micro_batch
        checkpointing = method.trainer.get("gradient_checkpointing")
        _, width = types(config)
        if config.hardware.device is Device.cpu:
            rows, checkpointed = micro_batch(method.batch_size, wanted, 1, False), bool(checkpointing)
        elif gpu_bytes is None:
            rows, checkpointed = 1 if wanted == "auto" else wanted, checkpointing is not False
        else:
            means, full = dict(self.rows.means), self.rows.batch(1, None)
            if full.visual:
                share = self._batch(config, 1).visual / full.visual
                less = means["visual_tokens_per_question"] * (1 - share)
                means["visual_tokens_per_question"] -= less
                means["tokens_per_question"] -= less if self.rows.at_hand else 0
            rows, checkpointed = choose(
                self.shape(config),
                free_bytes=int(gpu_bytes),
                micro_batches=divisors(method.batch_size) if wanted == "auto" else [wanted],
                checkpointing=checkpointing,
                bytes_per_element=width,
                **means,
            )
        return self.step(config, rows, checkpointed)

    def step(self, config: Config, rows: int, checkpointed: bool) -> Training:
        """The largest micro-batch of so many questions."""
        shape, (_, width), batch = self.shape(config), types(config), self._batch(config, rows)
        kept = activations(shape, batch.tokens, batch.visual, checkpointed, width)
        return Training(replace(resting(shape, width), activations=kept), rows, checkpointed, batch)

    def evaluation(self, config: Config) -> Evaluation:
        from vlmft.chat.prompts import token_limit

        shape, (_, width), settings = self.shape(config), types(config), config.eval.generation
        tokens = self.rows.longest + token_limit(config.model.answer_style, settings)
        prompts = [Row("", [0] * self.rows.longest, [], ())] * min(self.rows.prompts, settings.batch_size)
        first = next(batches(prompts, [([number], 0) for number in range(len(prompts))], settings.batch_size))
        adapted = config.method.peft is not None
        weights = shape.frozen_bytes + shape.trainable * shape.trainable_bytes if adapted else shape.parameters * width
        cache = key_value_bytes(self.model_config, len(first) * tokens, width)
        return Evaluation(weights, cache, len(first), tokens)

    def on_each(self, config: Config, strategy: str, ranks: int, now: Training) -> int:
        """Bytes on each of several GPUs, with a micro-batch like the present one as far as there are questions."""
        share = max(1, config.method.batch_size // ranks)
        rows = max(n for n in divisors(config.method.batch_size) if n <= min(now.micro_batch, share))
        kept = self.step(config, rows, now.checkpointing).need.activations
        return sharded(self.shape(config), strategy, ranks) + kept

    def _batch(self, config: Config, rows: int) -> Batch:
        return self.rows.batch(rows, visual_tokens(self.model_config, config.model.max_pixels))

    def cheaper(self, config: Config, gpu_bytes: float) -> list[str] | None:
        """The overrides of the cheapest change with which training fits such a GPU; None where there is none.

        In order of cost: a smaller micro-batch, checkpointing, smaller pictures, LoRA, a base in 8 or in 4 bits; each
        alone, then with those before it. For a run that fits as it is: no overrides.
        """
        return next(
            filter(None, (self._fitting(config, changes, gpu_bytes) for changes in self._changes(config))), None
        )

    def _changes(self, config: Config) -> Iterator[dict[str, Any]]:
        """Changes to try, the cheapest first."""
        method, quantization = config.method, config.method.quantization or {}
        rungs: list[dict[str, Any]] = [{}]
        lora = {"lora": True} if method.peft is None else {}
        if lora:
            rungs.append(lora)
        if not quantization.get("load_in_4bit"):
            rungs += [lora | {"bits": bits} for bits in (8, 4) if not quantization.get(f"load_in_{bits}bit")]
        for rung in rungs:
            for smaller in ({}, *({"pixels": pixels} for pixels in self._pixels(config))):
                yield rung | smaller
                if method.trainer.get("gradient_checkpointing") is not True:
                    yield rung | smaller | {"checkpointing": True}

    def _pixels(self, config: Config) -> Iterator[int]:
        """Halves of the pictures' size, as long as the rows get shorter by it."""
        full = self.rows.batch(1, None)
        if not full.visual:
            return
        each = full.visual / full.pictures
        vision = self.model_config.vision_config
        pixels = config.model.max_pixels or int(each * (vision.patch_size * vision.spatial_merge_size) ** 2)
        while (pixels := pixels // 2) >= max(_SMALLEST_PICTURE, config.model.min_pixels or 0):
            if (visual_tokens(self.model_config, pixels) or 0) < each:
                yield pixels

    def _fitting(self, config: Config, changes: Mapping[str, Any], gpu_bytes: float) -> list[str] | None:
        """The overrides of these changes, with the largest micro-batch that fits; None where none does."""
        changed, overrides = _changed(config, changes)
        found = self.training(changed, gpu_bytes)
        smaller = [n for n in reversed(divisors(config.method.batch_size)) if n < found.micro_batch]
        if verdict(found.need.total, gpu_bytes) == FITS:
            return overrides
        for rows in smaller:
            if verdict(self.step(changed, rows, found.checkpointing).need.total, gpu_bytes) == FITS:
                return [*overrides, f"hardware.micro_batch={rows}"]
        return None


def _changed(config: Config, changes: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The config with the changes, and what to type for them."""
    model, method, overrides = config.model, config.method, []
    if "lora" in changes:
        method = replace(method, peft=dict(_LORA))
        overrides.append("method=lora")
    if "checkpointing" in changes:
        method = replace(method, trainer={**method.trainer, "gradient_checkpointing": True})
        overrides.append("method.trainer.gradient_checkpointing=true")
    if "pixels" in changes:
        model = replace(model, max_pixels=changes["pixels"])
        overrides.append(f"model.max_pixels={changes['pixels']}")
    if "bits" in changes:
        few = {f"load_in_{changes['bits']}bit": True}
        method = replace(method, quantization=few)
        overrides.append(f"method.quantization.load_in_{changes['bits']}bit=true")
    return replace(config, model=model, method=method), overrides

"""Processor and model from a repository id or a folder, by the ordinary `from_pretrained`, with nothing missing."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmft.errors import DataError
from vlmft.models.tiny import write_tiny
from vlmft.schema import Model

# GLM's image processors count pixels over both temporal frames, the others count them once.
_PIXELS_PER_FRAME_FAMILIES = ("Glm4v", "Glm46V")


def source(model: Model) -> str:
    """Where the checkpoint comes from: a repository id, or an existing folder as an absolute path.

    Writes the tiny twin first where `model.tiny` names one. Raises DataError where nothing is named.
    """
    if not model.path:
        raise DataError(f"model {model.name or '(unnamed)'}: model.path names no repository or folder")
    if model.tiny:
        return str(write_tiny(model.tiny, model.path).resolve())
    folder = Path(model.path).expanduser()
    return str(folder.resolve()) if folder.exists() else model.path


def load_processor(model: Model) -> Any:
    """The processor (or, for a text model, the tokenizer) with the run's pixel limits set."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            source(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except OSError as error:
        raise _not_found(model, error) from error
    refuse_lossy_tokenizer(getattr(processor, "tokenizer", processor), model.path)
    limit_pixels(processor, model.min_pixels, model.max_pixels)
    return processor


def refuse_lossy_tokenizer(tokenizer: Any, path: str) -> None:
    """Raise DataError for a tokenizer that loses spaces or line ends.

    Repositories like DeepSeek-R1-Distill-Llama's name another class than their byte-level tokenizer has, and some
    releases of transformers believe them (transformers#45488).
    """
    text = "Is it\nthe left one"
    given_back = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
    if given_back.split() != text.split() or "\n" not in given_back:
        raise DataError(
            f"{path}: its tokenizer, loaded as {type(tokenizer).__name__}, turns {text!r} into {given_back!r}. Write "
            '"tokenizer_class": "TokenizersBackend" into tokenizer_config.json of a copy, or take another release of '
            "transformers"
        )


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set how many pixels an image may have after resizing; None keeps the processor's own limit."""
    if min_pixels is None and max_pixels is None:
        return
    image_processor: Any = getattr(processor, "image_processor", None)
    size = dict(getattr(image_processor, "size", None) or {})
    if not {"shortest_edge", "longest_edge"} <= size.keys():
        does = "reads no pictures" if image_processor is None else "does not resize by pixels"
        if tiles := getattr(image_processor, "max_image_tiles", None):
            does = f"cuts pictures into up to {tiles} tiles of {size['height']}x{size['width']} pixels instead"
        raise DataError(
            f"model.min_pixels and max_pixels: {type(processor).__name__} {does}; leave both at null for this model"
        )
    name = type(image_processor).__name__
    frames = image_processor.temporal_patch_size if name.startswith(_PIXELS_PER_FRAME_FAMILIES) else 1
    low = size["shortest_edge"] if min_pixels is None else frames * min_pixels
    high = size["longest_edge"] if max_pixels is None else frames * max_pixels
    if low > high:
        raise DataError(f"model.min_pixels={low // frames} is more than model.max_pixels={high // frames}")
    image_processor.size = type(image_processor.size)(shortest_edge=low, longest_edge=high)


def load_config(model: Model) -> Any:
    """The checkpoint's transformers config. Raises DataError where it is not found."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            source(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except OSError as error:
        raise _not_found(model, error) from error


def stop_ids(model: Model) -> set[int]:
    """The tokens at which the checkpoint's own generation settings stop."""
    from transformers import GenerationConfig

    try:
        stop = GenerationConfig.from_pretrained(source(model), revision=model.revision).eos_token_id
    except OSError:  # it has no such settings
        stop = getattr(load_config(model).get_text_config(), "eos_token_id", None)
    return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)


def auto_class(config: Any) -> Any:
    """The Auto class that makes a model from its config: one that reads pictures, or text alone."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    reads_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def load_model(model: Model, dtype: str, quantization: dict[str, Any] | None = None, split_model: bool = False) -> Any:
    """The model in `dtype` ("float32", "bfloat16", …), on the CPU or wherever quantisation puts it.

    With `split_model` its layers lie on the GPUs in sight, and inputs go to `model.device`. Raises DataError where the
    checkpoint is not found, where those GPUs have no room for it, or where it lacks a weight of the architecture: such
    a weight would be random without a word.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from vlmft.models import quantized, split

    common: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    config = load_config(model)
    list_names_at_once()
    try:
        loader = auto_class(config)
        reads_images = loader is AutoModelForImageTextToText
        if hasattr(getattr(config, "vision_config", None), "temporal_patch_size"):
            refuse_slow_conv3d(version("torch"))
        if quantization:
            common["quantization_config"] = quantized.settings(quantization)
        if split_model:
            common |= split.loading()
        loaded, report = loader.from_pretrained(
            source(model),
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=model.attention,
            # A Conv3d whose patches do not overlap, computed as the matrix product it is; saved as a Conv3d again.
            # Not where ZeRO-3 splits the model as it is read: transformers looks for such layers on the meta device.
            fusion_config={"patch_embeddings": True} if reads_images and not is_deepspeed_zero3_enabled() else None,
            output_loading_info=True,
            **common,
        )
    except OSError as error:
        raise _not_found(model, error) from error
    except ValueError as error:
        raise (split.of_quantizer(error, model.path) if split_model else error) from error
    if split_model:
        split.refuse_outside(loaded, model.path)
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys") or [])
    if missing:
        raise DataError(
            f"{model.path} lacks {len(missing)} weights of {type(loaded).__name__}, such as {', '.join(missing[:3])}: "
            "it is not a whole checkpoint of this architecture"
        )
    if is_deepspeed_zero3_enabled():
        # transformers keeps those of the checkpoint's names that it had to change, to save them as they were; here all.
        loaded._weight_conversions = [change for change in loaded._weight_conversions or [] if change.was_used()]
    if quantization:
        quantized.same_in_training_and_evaluation(loaded)
    if config.model_type == "mllama":
        see_own_pictures_only(loaded)
    return loaded


def list_names_at_once() -> None:
    """`dir` of transformers' lazy modules in linear time, with the same names.

    For `fusion_config` transformers (5.23) asks it of every module as often as a model has parts, and each of several
    thousand names is then looked up in a list: more than two seconds of every load.
    """
    from transformers.utils.import_utils import _LazyModule

    def names(module: Any) -> list[str]:
        return list(dict.fromkeys([*ModuleType.__dir__(module), *module.__all__]))

    _LazyModule.__dir__ = names  # type: ignore[method-assign]


def see_own_pictures_only(model: Any) -> None:
    """Make every row of a batch give what it gives alone, though others have more pictures.

    In transformers' Mllama, tokens that see no picture (those before the first one, and all of a row without any)
    attend to every place for pictures that the batch has, empty ones too (transformers#39379). Here these are hidden
    from the former, and zero to the latter, which adds nothing. Rows alone, or with as many, are left as they are.
    """
    import torch

    tiles = model.config.vision_config.max_num_tiles

    def hide_empty_places(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        states, mask = kwargs.get("cross_attention_states"), kwargs.get("cross_attention_mask")
        if states is None or mask is None:  # no pictures, or in the cache
            return None
        place = tiles * states.shape[-2]
        seen = ((mask == 0) & kwargs["full_text_row_masked_out_mask"].bool()).any(2)  # by any token: (B, 1, keys)
        filled = seen.view(len(mask), -1, place).any(-1)
        if filled.all():
            return None
        keys = filled.repeat_interleave(place, dim=1)
        hidden = ~keys & keys.any(1, keepdim=True)
        return args, kwargs | {
            "cross_attention_states": states * keys.view(*states.shape[:2], 1).to(states.device),
            "cross_attention_mask": mask.masked_fill(hidden[:, None, None], torch.finfo(mask.dtype).min),
        }

    model.model.language_model.register_forward_pre_hook(hide_empty_places, with_kwargs=True)


def refuse_slow_conv3d(torch_version: str) -> None:
    """Raise DataError on torch 2.9, whose bfloat16 Conv3d is ten and more times slower (pytorch#174051).

    These towers cut pictures into patches with a Conv3d. The fusion above avoids it, but other code that loads the
    same weights would not.
    """
    if torch_version.startswith("2.9."):
        raise DataError(
            f"torch {torch_version} computes the Conv3d of this model's patch embedding 10 to 20 times slower than "
            "other releases; install torch 2.10 or newer (or 2.8), with the torchvision of the same release"
        )


def freeze(model: Any, vision: bool, projector: bool, llm: bool) -> None:
    """Stop the gradient of the named parts. The projector is the vision tower's merger into the language model."""
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if (part == "vision" and vision) or (part == "projector" and projector) or (part == "llm" and llm):
            parameter.requires_grad_(False)


def part_of(parameter: str) -> str:
    """Which part of a vision-language model a parameter belongs to: vision, projector or llm."""
    if any(key in parameter for key in ("merger", "downsample", "multi_modal_projector")):
        return "projector"
    if any(key in parameter for key in ("visual.", "vision_tower.", "vision_model.")):
        return "vision"
    return "llm"


def _not_found(model: Model, error: Exception) -> DataError:
    revision = f" at revision {model.revision}" if model.revision else ""
    reason = str(error).strip().splitlines()[0]
    return DataError(
        f"model {model.name}: {model.path}{revision} is neither a folder here nor to be had from the Hugging Face Hub "
        f"({reason}). Set model.path=<folder>, or fetch it where there is a network: "
        f"hf download {model.path}. A gated repository also needs HF_TOKEN."
    )

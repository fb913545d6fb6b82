"""The base model that stands under one adapter after the other, and is loaded once for all of them."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmft import ranks
from vlmft.schema import Model

logger = logging.getLogger(__name__)


def place(model: Model) -> tuple[str, str | None]:
    """Where a checkpoint lies, the same however its folder is written; nothing is read."""
    return os.path.realpath(os.path.expanduser(model.path)), model.revision


def base_key(model: Model, quantization: dict[str, Any] | None) -> str:
    """The same for models that are the same in memory, as far as that can be said from where they lie."""
    return repr((place(model), model.dtype.value, model.attention, quantization, model.trust_remote_code))


def use_own_gpu() -> None:
    """From here on each of several processes computes on the GPU of its number on this machine, where it sees more."""
    import torch

    if ranks.count() > 1 and torch.cuda.device_count() > 1:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


class Base:
    """The model that was loaded last, kept until another one is asked for."""

    def __init__(self) -> None:
        self._model: Any = None
        self._key = ""
        self._weights: dict[str, int] = {}  # checksums, taken before the first adapter

    @contextmanager
    def wearing(
        self, adapter: Path | None, spec: Model, dtype: str, quantization: dict[str, Any] | None, device: str,
        split_model: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """`spec`'s model on `device`, with the adapter of that folder around it (None: as it is), ready to generate.

        With `split_model` it lies on all GPUs in sight. The adapter is never merged, and taken off at the end. Raises
        DataError where either cannot be loaded.
        """
        from vlmft.models.adapters import load_adapter
        from vlmft.training.callbacks import checksums

        key = base_key(spec, quantization)
        if key != self._key:
            self._load(spec, dtype, quantization, device, split_model)
        model = self._model
        self._model, self._key = None, ""  # an error may leave half an adapter on it
        if adapter is None:
            yield model
        else:
            self._weights = self._weights or checksums(model)
            adapted = load_adapter(model, adapter)
            yield adapted
            # Deleted first: what `unload` leaves of an active adapter are the modules that it trained whole.
            adapted.delete_adapter(adapted.active_adapter)
            model = adapted.unload()
            del adapted
            if checksums(model) != self._weights:
                # Adapters with biases, or begun by PiSSA and its like, write into the base itself.
                logger.info("model     let go, since this adapter changed its weights")
                return
        self._model, self._key = model, key

    def _load(
        self, spec: Model, dtype: str, quantization: dict[str, Any] | None, device: str, split_model: bool
    ) -> None:
        from vlmft.models import split
        from vlmft.models.load import load_model

        self._model, self._key, self._weights = None, "", {}
        free_memory()
        self._model = load_model(spec, dtype, quantization, split_model)
        logger.info("model     %s, in %s on %s", spec.path, "few bits" if quantization else dtype, device)
        if split_model:
            logger.info("%s", split.line(self._model))
        if device == "cuda" and not quantization:
            split.to_gpu(self._model)
        self._model.eval()


def free_memory() -> None:
    """Give back what nobody holds any more, a GPU's memory too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

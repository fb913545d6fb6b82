"""Tiny twins: real checkpoint folders of a model family with about half a million random parameters.

Everything after this room is the ordinary `from_pretrained` path, so a test on a twin is a test of the code that
loads the real model.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from vlmft import ranks
from vlmft.errors import DataError
from vlmft.files import made_once, read_json
from vlmft.models.tiny import glm, llama, qwen

# A twin is a function of this number and of torch's generator; raise it whenever what is written changes.
RECIPE = 2
MARKER = "tiny.json"
_PATIENCE = 300  # seconds
_SPREAD = 0.08  # of the weights; at the usual 0.02 so small a model barely learns
WRITERS = {
    "glm41v": glm.write_glm41v,
    "glm45v": glm.write_glm45v,
    "qwen3vl": qwen.write_qwen3vl,
    "llama32_vision": llama.write_llama32_vision,
    "deepseek_r1": llama.write_deepseek_r1,
}


def write_tiny(kind: str, folder: str | os.PathLike[str]) -> Path:
    """Write the twin `kind` (one of WRITERS) into `folder` unless it is there already, and return the folder.

    A twin of an older recipe is written anew. Raises DataError for an unknown kind, or for a folder that holds
    something else.
    """
    folder = Path(folder).expanduser()
    if kind not in WRITERS:
        raise DataError(f"model.tiny={kind}: there is no such twin; there are {', '.join(sorted(WRITERS))}")
    if not ranks.first():  # transformers saves on the first process alone
        _await(folder / MARKER)

    def write(fresh: Path) -> None:
        WRITERS[kind](fresh)
        _draw_weights(fresh / "model.safetensors")

    if not made_once(folder, MARKER, kind, RECIPE, write):
        raise DataError(f"{folder} is not the tiny twin {kind}: remove it, or set model.path to another folder")
    return folder


def _await(marker: Path) -> None:
    """Wait for the twin that the first process writes; DataError where it does not come."""
    deadline = time.monotonic() + _PATIENCE
    while (read_json(marker) or {}).get("recipe") != RECIPE:
        if time.monotonic() > deadline:
            raise DataError(f"{marker.parent}: the first process has not written the twin in {_PATIENCE} s")
        time.sleep(0.1)


def _draw_weights(file: Path) -> None:
    """Draw every matrix anew, in the order of names; how a class is built may change what it draws itself."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    weights = load_file(file)
    for name in sorted(weights):
        if weights[name].ndim > 1:
            weights[name].normal_(0.0, _SPREAD, generator=generator)
    save_file(weights, file, metadata={"format": "pt"})

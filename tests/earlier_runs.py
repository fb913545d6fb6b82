"""Settings of short runs, and folders that look like runs and adapters of before."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlmft.files import write_json
from vlmft.schema import Config

Composed = Callable[..., Config]
Command = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("model=tiny_glm41v", "hardware=cpu", "method.trainer.max_steps=2", "method.batch_size=4",
         "method.trainer.warmup_steps=0", "eval.generation.max_new_tokens=8")  # fmt: skip
SMALL = (*SHORT, "dataset=demo_ct", "dataset.max_rows=16", "method.trainer.learning_rate=1e-2", "eval=none")


def write(config: Config, run: Path) -> Path:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return run


def adapter(folder: Path, base: str, **settings: Any) -> Path:
    """A folder that looks like an adapter's."""
    folder.mkdir(parents=True)
    write_json(folder / "adapter_config.json", {"r": 8, "base_model_name_or_path": base} | settings)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder

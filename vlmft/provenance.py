"""`provenance.json`: which code, packages, machine and data made a run, attempt by attempt."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vlmft.files import read_json, write_json

_PACKAGES = (
    "torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes",
    "hydra-core", "omegaconf",
)  # fmt: skip


def record_attempt(
    run: Path,
    fingerprints: dict[str, str],
    model: Path | None,
    init_from: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
) -> None:
    """Add this start of the run to its provenance.

    `model` is the folder that the base model lies in, `init_from` says of the weights that training starts from where
    they lie, which they are and what run made them, and `server` is what a server that answers says of itself.
    """
    found = read_json(run / "provenance.json") or {
        "datasets": fingerprints, "model": None, "decided": None, "attempts": []
    }  # fmt: skip
    if model and model.parent.name == "snapshots":  # the Hub's cache names a snapshot by its commit
        found["model"] = {"commit": model.name}
    if init_from:
        found["init_from"] = init_from
    found["attempts"].append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "argv": sys.argv,
            **_code(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "host": socket.gethostname(),
            **({"server": server} if server else {}),
            "slurm": {key: value for key, value in os.environ.items() if re.match("SLURM_.*(JOB|ARRAY)", key)},
        }
    )
    write_json(run / "provenance.json", found)


def decided(run: Path) -> dict[str, Any] | None:
    """What the device decided at the first start of the run; None before that."""
    return (read_json(run / "provenance.json") or {}).get("decided")


def write_decided(run: Path, decisions: dict[str, Any]) -> None:
    found = read_json(run / "provenance.json") or {"datasets": {}, "attempts": []}
    write_json(run / "provenance.json", found | {"decided": decisions})


def _code() -> dict[str, Any]:
    """The commit vlmft runs from and, where files differ from it, a hash of the difference; None elsewhere."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "diff": None}
    difference = git("diff", "HEAD") or ""
    return {
        "commit": commit.strip(),
        "diff": hashlib.sha256(difference.encode()).hexdigest()[:16] if difference else None,
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # a twentieth of a start

    try:
        return version(package)
    except PackageNotFoundError:
        return None

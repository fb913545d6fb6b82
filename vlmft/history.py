"""`history.jsonl` of a run: a line for each log of its training, each step once however often the run was resumed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmft.files import write_text

HISTORY = "history.jsonl"
REWARDS = ("rewards/accuracies", "rewards/margins")  # of DPO: share of pairs ranked rightly, and by how much
SHOWN = {"loss", "eval_loss", "learning_rate", "grad_norm", *REWARDS, *(f"eval_{name}" for name in REWARDS)}
_LOSS = re.compile(r'"loss": *(-?\d[\d.eE+-]*)')  # parsing every line would take most of the time of `vlmft status`


def ranked(values: Mapping[str, Any]) -> str:
    """What is told beside a loss of DPO; "" of other training."""
    share = values.get(REWARDS[0])
    return "" if share is None else f", {100 * share:.0f} % of pairs ranked rightly"


def append(folder: Path, step: int, values: dict[str, float]) -> None:
    """Add what was logged at a step: those of SHOWN that there are."""
    with open(folder / HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")


def go_back(folder: Path, step: int) -> None:
    """Drop what training that goes on after `step` will log again, and lines that were cut; all of it at step 0."""
    if (folder / HISTORY).is_file():
        kept = [line for line in _finished(folder).splitlines() if 0 <= _step(line) <= step] if step else []
        write_text(folder / HISTORY, "".join(f"{line}\n" for line in kept))


def read(folder: Path) -> list[dict[str, Any]]:
    """Every line that was finished, in order; none where there is no history."""
    return [json.loads(line) for line in _finished(folder).splitlines()] if (folder / HISTORY).is_file() else []


def losses(folder: Path) -> list[float]:
    """Every training loss that is a number, in order; none where there is no history or it cannot be read."""
    try:
        return [float(number) for number in _LOSS.findall(_finished(folder))]
    except (OSError, ValueError):
        return []


def _finished(folder: Path) -> str:
    text = (folder / HISTORY).read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1]


def _step(line: str) -> int:
    """The step of a line, or -1 where the line is not whole."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1

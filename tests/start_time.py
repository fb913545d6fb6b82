"""How long a command takes that imports no torch, held against what importing torch takes on this machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

LONGEST = 1.5  # seconds
SHARE = 2 / 3  # of importing torch, where a machine is so slow that this is more


def assert_quick(arguments: Sequence[str], folder: Path, says: str = "") -> None:
    """train.py with these arguments says so, in no more than the median of five starts may take."""
    taken = _median_seconds([str(ROOT / "train.py"), *arguments], folder, says)
    assert taken <= LONGEST or taken <= SHARE * _median_seconds(["-c", "import torch"], folder), taken


def _median_seconds(command: Sequence[str], folder: Path, says: str = "") -> float:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
        times.append(time.perf_counter() - begun)
        assert says in done.stdout
    return statistics.median(times)

"""How long a start takes that imports no torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

LONGEST = 1.5  # seconds


def assert_quick(arguments: Sequence[str], folder: Path, says: str = "") -> None:
    """train.py with these arguments says so, in no more than the median of five starts may take."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, capture_output=True, text=True
        )
        times.append(time.perf_counter() - begun)
        assert says in done.stdout
    assert statistics.median(times) <= LONGEST, times

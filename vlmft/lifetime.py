"""How a process ends with the one that started it, and what it writes down for that one when it fails."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


def end_with_parent(with_signal: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when the one that started it is gone, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, with_signal)


def leave_word(told: str) -> None:
    """Of one rank of several: write why it failed where torch's agent will look for it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "w", encoding="utf-8") as word:
            json.dump({"message": told, "timestamp": int(time.time())}, word)

"""Ranks and what starts them: whose error is told, signals, and nothing that outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.prepared import Prepared, Started
from vlmft.errors import AGAIN, INTERRUPTED
from vlmft.torchrun import to_blame

# A worker without torch: it does what its arguments say, with `rank` and `leave_word` at hand.
WORKER = """
import os, signal, sys, time
from vlmft import worker
from vlmft.lifetime import leave_word
worker.heed_signals()
rank = int(os.environ["RANK"])
open(os.path.join(sys.argv[2], f"pid-{rank}"), "w").write(str(os.getpid()))
try:
    exec(sys.argv[1])
except KeyboardInterrupt as stop:
    open(os.path.join(sys.argv[2], f"told-{rank}"), "w").write(str(stop))
    sys.exit(130)
"""


def failure(exitcode: int, timestamp: int, said: str = "<NONE>") -> Any:
    return SimpleNamespace(exitcode=exitcode, timestamp=timestamp, error_file_data={"message": said})


def test_the_rank_that_failed_of_itself_is_to_blame() -> None:
    lost = "DistBackendError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"
    assert to_blame({0: failure(1, 5, lost), 1: failure(1, 6, "DataError: no picture")}) == (1, "DataError: no picture")
    assert to_blame({0: failure(INTERRUPTED, 1), 1: failure(3, 2)}) == (1, "ended with exit code 3")
    assert to_blame({0: failure(-signal.SIGTERM, 1), 1: failure(-signal.SIGKILL, 2)})[0] == 1
    assert "SIGKILL" in to_blame({0: failure(1, 9, lost), 1: failure(-signal.SIGKILL, 9)})[1]
    assert to_blame({0: failure(1, 5, lost), 1: failure(1, 4, lost)}) == (1, lost), "the first, where all lost another"


@pytest.fixture
def launched(prepared: Prepared, tmp_path: Path) -> Iterator[Any]:
    """launched("what each rank does"): the process that starts two ranks; all of them are gone in the end."""
    (tmp_path / "rank.py").write_text(WORKER)
    started: list[Started] = []

    def of(does: str) -> Started:
        words = ["--processes", "2", "--failure", str(tmp_path / "failure.json"), "--", str(tmp_path / "rank.py"), does]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(prepared.start(["-m", "vlmft.torchrun", *words, str(tmp_path)], ROOT, environment))
        return started[-1]

    yield of
    for process in started:
        process.kill()
        process.wait()
    until(lambda: not any(map(psutil.pid_exists, pids(tmp_path))))


def until(happened: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def pids(folder: Path) -> list[int]:
    return [int(text) for file in folder.glob("pid-*") if (text := file.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        ("leave_word('ValueError: bad row') if rank else time.sleep(60); sys.exit(1)", 1, "ValueError: bad row"),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)", 1, "killed by SIGKILL"),
        ("sys.exit(3) if rank else time.sleep(60)", 1, "ended with exit code 3"),
        (f"sys.exit({AGAIN}) if rank else time.sleep(60)", AGAIN, None),
        ("print(f'rank {rank} of', os.environ['WORLD_SIZE'])", 0, None),
    ],
)
def test_how_ranks_end(does: str, code: int, told: str | None, launched: Any, tmp_path: Path) -> None:
    process = launched(does)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == code, output
    if told:
        said = json.loads((tmp_path / "failure.json").read_text())
        assert said["rank"] == 1 and told in said["error"]
        assert output == "", "what is wrong is told by the parent, once"
    else:
        assert not (tmp_path / "failure.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_on_to_every_rank(sent: signal.Signals, launched: Any, tmp_path: Path) -> None:
    process = launched("time.sleep(60)")
    until(lambda: len(pids(tmp_path)) == 2)
    time.sleep(0.5)
    process.send_signal(sent)
    assert process.wait(timeout=60) == INTERRUPTED
    assert len(list(tmp_path.glob("told-*"))) == 2


@pytest.mark.slow
def test_no_rank_outlives_what_started_it(launched: Any, tmp_path: Path) -> None:
    process = launched("time.sleep(60)")
    until(lambda: len(pids(tmp_path)) == 2)
    process.kill()
    until(lambda: not any(map(psutil.pid_exists, pids(tmp_path))))

"""A disk that fills up while a run saves: a plain word, the last whole checkpoint kept, and on from there."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_kill import RUN, weights
from tests.test_run import read
from vlmft.files import disk_full


def test_which_errors_say_that_a_disk_is_full() -> None:
    assert disk_full(OSError(errno.ENOSPC, "No space left on device")) and disk_full(OSError(errno.EDQUOT, "quota"))
    assert not disk_full(OSError(errno.EACCES, "no")) and not disk_full(ValueError("a")) and not disk_full(None)
    try:
        try:
            raise OSError(errno.ENOSPC, "x")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert disk_full(error)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk("8m"): a small disk of that size, or the same one made that large; skips where it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def of(size: str) -> Path:
        remount = ["remount,"] if place.is_mount() else [""]
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{remount[0]}size={size}", "tmpfs", str(place)], capture_output=True
        )
        if made.returncode:
            pytest.skip(f"no small disk can be mounted here: {made.stderr.decode().strip()}")
        return place

    yield of
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kept"), [("12m", True), ("5m", False)], ids=["after a checkpoint", "in the first"])
def test_a_full_disk(
    size: str, kept: bool, disk: Callable[[str], Path], command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    words = (*RUN, "method=full", "method.trainer.save_total_limit=null")
    assert command(*words).returncode == 0
    (undisturbed,) = (tmp_path / "outputs").glob("tiny_*")
    outputs = disk(size) / "outputs"
    done = command(*words, f"paths.outputs={outputs}")
    assert done.returncode == 1 and "there is no room left on the disk of" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = outputs.glob("tiny_*")
    assert bool(list(run.glob("checkpoint-*/complete.json"))) is kept and not (run / ".saving").exists()
    if kept:
        assert "is whole: make room" in done.stderr and read(run / "status.json")["state"] == "failed"
    disk("100m")
    done = command(*words, f"paths.outputs={outputs}")
    assert done.returncode == 0, done.stderr
    assert ("resume    from checkpoint-" in done.stdout) is kept
    assert weights(run) == weights(undisturbed)

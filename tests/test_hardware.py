from __future__ import annotations

from pathlib import Path

import pytest

from vlmft.errors import DataError
from vlmft.hardware import child_environment, free_gpus, micro_batch, processes
from vlmft.schema import Device, Hardware, SplitModel


def test_the_micro_batch_divides_the_step() -> None:
    assert micro_batch(16, "auto", ranks=1, cuda=False) == 16
    assert micro_batch(16, "auto", ranks=1, cuda=True) == 2
    assert micro_batch(48, "auto", ranks=2, cuda=False) == 12
    assert micro_batch(16, 8, ranks=2, cuda=True) == 8
    for wrong in (3, 0, 32, "many", True):
        with pytest.raises(DataError, match=r"micro-batches of 1, 2, 4, 8, 16, or auto"):
            micro_batch(16, wrong, ranks=1, cuda=False)
    with pytest.raises(DataError, match=r"method.batch_size=10 does not divide over 4 ranks; nearest: 8 or 12"):
        micro_batch(10, "auto", ranks=4, cuda=False)


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that lists two GPUs: the first busy, the second as the file says."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "GPU-a, 70000, 80000"\ncat {tmp_path}/second\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "second"


def test_the_first_free_gpu_is_chosen(two_gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus.write_text("GPU-c, [N/A], [N/A]\nGPU-b, 12, 80000\n")
    assert free_gpus() == ["GPU-b"]
    env = child_environment(Hardware(device=Device.auto))
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-b" and "DS_ACCELERATOR" not in env
    assert child_environment(Hardware(device=Device.cpu))["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    named = child_environment(Hardware())["CUDA_VISIBLE_DEVICES"]
    assert named == "3", "a scheduler's choice stands, the first of it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5")
    assert child_environment(Hardware(processes=2))["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert child_environment(Hardware(split_model=SplitModel.auto), split=True)["CUDA_VISIBLE_DEVICES"] == "3,4,5"
    assert processes(Hardware(processes="auto")) == 3 and processes(Hardware(processes="auto", device=Device.cpu)) == 1
    with pytest.raises(DataError, match=r"hardware\.processes=4: 3 GPUs are in sight"):
        child_environment(Hardware(processes=4))


def test_no_free_gpu(two_gpus: Path) -> None:
    two_gpus.write_text("GPU-b, 79000, 80000\n")
    assert child_environment(Hardware(device=Device.auto))["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(DataError, match="no free GPU"):
        child_environment(Hardware(device=Device.cuda))

"""What the machine knows of runs: whether their processes live, what its GPUs do, and what Slurm says of their jobs."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.files import read_json

_PATIENCE = 10  # seconds for nvidia-smi or squeue to answer
_GIB = 2**30
_Gpu = tuple[str, str, str, str, str, str]  # index, name, % busy, GiB used, GiB in all, °C


def gone(status: dict[str, Any]) -> bool:
    """Whether the process that wrote the status was one of this machine, and is no more."""
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:  # after a restart, its number is soon another process's
        return b"vlmft" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def locked(folder: Path) -> bool:
    """Whether a process holds the run's lock (a child of a killed worker may); also where that cannot be told."""
    place = Path(os.path.abspath(folder))
    try:
        file = os.open(place.parent / ".locks" / place.name, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once; whoever wants the lock tries for a while
        return False
    except OSError:
        return True
    finally:
        os.close(file)


def gpu_lines() -> list[str]:
    """A line for each GPU that the driver shows; none where there is no driver or it does not answer."""
    try:
        rows = _gpus_of_pynvml()
    except Exception:  # not installed, no driver, or one too old for it: each has an error of its own
        rows = _gpus_of_nvidia_smi()
    return [
        f"gpu {index:<5} {name}: {used} % busy, memory {memory}/{total} GiB, {degrees} °C"
        for index, name, used, memory, total, degrees in rows
    ]


def queue_lines(folders: Sequence[Path]) -> list[str]:
    """For each of the runs that Slurm started: its job, the job's state in the queue, and the log of the run."""
    jobs = {folder: job for folder in folders if (job := _slurm_job(folder))} if shutil.which("squeue") else {}
    if not jobs:
        return []
    numbers = dict.fromkeys(job["SLURM_JOB_ID"] for job in jobs.values())
    answer = _output("squeue", "-h", "-j", ",".join(numbers), "-o", "%A %T")
    states = dict(line.split(maxsplit=1) for line in answer.splitlines() if len(line.split()) > 1)
    return [
        f"slurm     {_shown(job)} {states.get(job['SLURM_JOB_ID'], 'not in the queue')}, log: {folder / 'train.log'}"
        for folder, job in jobs.items()
    ]


def _gpus_of_pynvml() -> list[_Gpu]:
    import pynvml

    def asked(question: Any, *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except pynvml.NVMLError:  # a board that is cut up, or passed through, does not tell everything
            return None

    pynvml.nvmlInit()
    try:
        rows: list[_Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(gpu)
            busy = asked(pynvml.nvmlDeviceGetUtilizationRates, gpu)
            memory = asked(pynvml.nvmlDeviceGetMemoryInfo, gpu)
            degrees = asked(pynvml.nvmlDeviceGetTemperature, gpu, pynvml.NVML_TEMPERATURE_GPU)
            rows.append((
                str(index), name.decode() if isinstance(name, bytes) else name,
                _number(busy and busy.gpu), _number(memory and memory.used, _GIB),
                _number(memory and memory.total, _GIB), _number(degrees),
            ))  # fmt: skip
        return rows
    finally:
        pynvml.nvmlShutdown()


def _gpus_of_nvidia_smi() -> list[_Gpu]:
    query = "--query-gpu=index,name,utilization.gpu,memory.used,memory.total,temperature.gpu"
    rows = []
    for line in _output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 6:  # else it is an error message: nvidia-smi writes those to stdout as well
            index, name, busy, used, total, degrees = cells
            rows.append(
                (index, name, _number(busy), _number(used, 1024), _number(total, 1024), _number(degrees))
            )  # fmt: skip
    return rows


def _number(value: Any, unit: int = 1) -> str:
    """In its unit, to a tenth where there is one; a dash for what is not told, such as [N/A]."""
    try:
        return f"{float(value) / unit:.1f}" if unit > 1 else f"{float(value):.0f}"
    except (TypeError, ValueError):
        return "–"


def _slurm_job(folder: Path) -> dict[str, str] | None:
    """Slurm's variables of the run's last attempt; None where it had none."""
    try:
        job = read_json(folder / "provenance.json")["attempts"][-1]["slurm"]
        return job if job.get("SLURM_JOB_ID") else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _shown(job: dict[str, str]) -> str:
    """A job as its user knows it: an element of an array by the array's number and its own."""
    array, element = job.get("SLURM_ARRAY_JOB_ID"), job.get("SLURM_ARRAY_TASK_ID")
    if array and element:
        return f"{array}_{element}"
    return f"{job['SLURM_JOB_ID']} (of array {array})" if array else job["SLURM_JOB_ID"]


def _output(*command: str) -> str:
    """What a program prints; "" where it is not there, fails or does not answer."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""

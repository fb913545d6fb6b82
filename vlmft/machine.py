"""What the machine knows of runs: whether their processes live, and what its GPUs do."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

_PATIENCE = 10  # seconds for nvidia-smi to answer
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
    try:  # after a restart, its number is soon another process's; a folder vlmft may be part of any
        return b"\0vlmft." not in Path(f"/proc/{pid}/cmdline").read_bytes()
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


def _output(*command: str) -> str:
    """What a program prints; "" where it is not there, fails or does not answer."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""

"""`vlmft status`: on run directories made here, whole, half-written and missing; with stand-ins for what it asks."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import ROOT
from vlmft import history, machine, watch
from vlmft.errors import ConfigError, DataError
from vlmft.lock import RunLock

NO_PROCESS = 2**22 + 1  # above the kernel's highest number


@contextmanager
def process_with(argument: str) -> Iterator[int]:
    """The number of a process that has this in its command line."""
    code = "import time; print('here', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, argument], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def worker() -> Iterator[int]:
    with process_with("vlmft.worker") as pid:
        yield pid


@pytest.fixture
def made(worker: int, tmp_path: Path) -> Callable[..., Path]:
    """made("name", losses, state="failed", …): a run directory; running, in training, unless it says otherwise."""

    def run(name: str, losses: tuple[float, ...] = (), **values: Any) -> Path:
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        now = time.time()
        known = {
            "state": "running", "phase": "training", "step": 30, "total": 120, "loss": 0.5, "grad_norm": 1.25,
            "eta": 125.0, "error": None, "pid": worker, "host": socket.gethostname(), "started": now - 3700,
            "updated": now,
        }  # fmt: skip
        (folder / "status.json").write_text(json.dumps(known | values))
        for step, loss in enumerate(losses):
            history.append(folder, step, {"loss": loss})
        (folder / "train.log").write_text("".join(f"{name} says {line}\n" for line in range(9)))
        return folder

    return run


def drawn(*folders: Path, width: int = 160, labels: list[str] | None = None) -> str:
    out = Console(file=io.StringIO(), width=width)
    names = labels or [folder.name for folder in folders]
    rows = [(name, folder, watch.look(folder)) for name, folder in zip(names, folders, strict=True)]
    out.print(watch._table(rows, width))
    return out.file.getvalue()  # type: ignore[attr-defined]


def show(*paths: Path, tail: int = 0) -> None:
    watch.status_command(paths, watch=False, refresh=10, tail=tail)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([2, 2, 2], "▁▁▁"),
        ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"),
        ([8, 1, 4.5], "█▁▅"),
        (list(range(40, 0, -1)), "███▇▇▆▆▆▅▅▄▄▃▃▃▂▂▁▁▁"),
    ],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert watch.sparkline(values) == line


def test_sparkline_takes_all_values_the_newest_last() -> None:
    assert watch.sparkline([0.0] * 999 + [1.0], width=4) == "▁▁▁█"
    assert watch.sparkline([0, 0, 4, 4, 8, 8], width=3) == "▁▅█"


def test_a_row_says_how_far_a_run_is(made: Callable[..., Path]) -> None:
    run = made("glm-slake-lora-s0-12345678", tuple(float(n) for n in range(30)))
    (row,) = [line for line in drawn(run).splitlines() if line.startswith(run.name)]
    assert row.split() == [
        run.name, "running,", "training", "30/120", "25%", "1:01:40", "2:05", "0.5", "19.5", "1.25",
        "▁▁▁▂▂▃▃▃▄▄▅▅▆▆▆▇▇███",
    ]  # fmt: skip


def test_a_run_that_is_done_shows_no_steps_of_its_last_evaluation(made: Callable[..., Path]) -> None:
    run = made("over", state="done", phase="", eta=None)
    assert drawn(run).splitlines()[1].split() == ["over", "done", "1:01:40", "0.5", "1.25"]


@pytest.mark.parametrize("width", [100, 130, 160, 200])
def test_no_width_cuts_anything(width: int, made: Callable[..., Path]) -> None:
    run = made(
        "llama32_vision-pathvqa-qlora4-s0-12345678", tuple(1 / (n + 1) for n in range(30)), loss=1.2345e-5,
        step=1234, total=12345, eta=360000, phase="evaluating pathvqa",
    )  # fmt: skip
    out = drawn(run, width=width)
    for part in ("running,", "evaluating", "pathvqa", "1234/12345", "9%", "1:01:40", "100:00:00", "1.23e-05", "1.25"):
        assert part in out
    assert watch.sparkline(history.losses(run)) in out and "…" not in out
    assert all(len(line) <= width for line in out.splitlines())
    heading = next(line for line in out.splitlines() if "state" in line)
    assert run.name in "".join(line[: heading.index("state")].strip() for line in out.splitlines())


def test_a_run_that_is_not_there_yet_waits(made: Callable[..., Path], tmp_path: Path) -> None:
    table = watch.live_table([made("here"), tmp_path / "outputs" / "planned"], labels=["one", "two"])
    assert table.row_count == 2
    assert drawn(tmp_path / "outputs" / "planned", labels=["two"]).splitlines()[1].split() == ["two", "waiting"]


def test_a_run_is_starting_once_someone_has_its_lock(made: Callable[..., Path]) -> None:
    run = made("begun")
    (run / "status.json").unlink()
    assert watch.look(run)["state"] == "waiting"
    with RunLock(run.parent, run.name):
        assert watch.look(run)["state"] == "starting"


def test_a_run_whose_process_is_gone_has_died(made: Callable[..., Path]) -> None:
    run = made("killed", pid=NO_PROCESS)
    assert watch.look(run)["state"] == "died"
    assert f"killed: process {NO_PROCESS} is gone" in drawn(run)
    with RunLock(run.parent, run.name):
        assert watch.look(run)["state"] == "running", "its parent is still there, and will say how it ended"
    with process_with("/home/me/vlmft/data") as pid:
        assert watch.look(made("reused", pid=pid))["state"] == "died", "the number is another process's by now"


@pytest.mark.parametrize("changed", [{}, {"pid": NO_PROCESS, "host": "another"}, {"pid": None}])
def test_a_run_is_not_called_dead_without_proof(changed: dict[str, Any], made: Callable[..., Path]) -> None:
    assert watch.look(made("run", **changed))["state"] == "running"


def test_a_run_that_ends_while_it_is_looked_at(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = made("ending", pid=NO_PROCESS)

    def ended_now(folder: Path) -> bool:
        (run / "status.json").write_text('{"state": "done"}')
        return False

    monkeypatch.setattr(watch, "locked", ended_now)
    assert watch.look(run)["state"] == "done"


def test_the_error_is_its_first_line_cut(made: Callable[..., Path]) -> None:
    out = drawn(made("bad", state="failed", error=f"RuntimeError: [/red] {'x' * 200}\nand more", eta=None))
    said = "".join(out.split("bad: ")[1].split())
    assert said == "RuntimeError:[/red]" + "x" * 98 + "…"


def test_half_written_files_break_nothing(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = made("half")
    (run / "status.json").write_text('{"state": "ru')
    (run / "history.jsonl").write_text('{"step": 1, "lo')
    (run / "provenance.json").write_text("{")
    (run / "train.log").unlink()
    assert watch.look(run / "config.yaml")["state"] == "waiting", "no folder at all"
    bare = made("bare", state="running")
    (bare / "status.json").write_text('{"state": "running"}')
    show(run.parent, tail=3)
    out = capsys.readouterr().out
    assert "2 runs: 1 running, 1 waiting" in out


def test_what_the_paths_mean(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made("b-done", state="done", phase="")
    made("a-failed", state="failed", error="ValueError: no")
    made("c-running")
    made("a-failed.old-20260101-000000")
    (tmp_path / "outputs" / ".locks").mkdir()
    (tmp_path / "outputs" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    for paths in ((), (Path("outputs"),), (Path("outputs"), Path("outputs/b-done"))):
        show(*paths)
        out = capsys.readouterr().out
        assert "3 runs: 1 running, 1 failed, 1 done" in out
        assert "running, training" in out, "a row is one line, also in a pipe"
        assert out.index("c-running") < out.index("a-failed") < out.index("b-done"), "what runs comes first"
    monkeypatch.chdir("outputs/b-done")
    show(Path("."))
    assert "b-done  " in capsys.readouterr().out


def test_a_sweep_shows_what_it_will_hold(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made("first")
    made("elsewhere")
    sweep = tmp_path / "multirun_reports" / "grid"
    sweep.mkdir(parents=True)
    jobs = [
        {"number": 0, "folder": "outputs/first", "base": "outputs/base", "error": None},
        {"number": 1, "folder": "outputs/second", "base": "outputs/base", "error": None},
        {"number": 2, "folder": None, "base": None, "error": "slake is not here yet\nfetch it"},
    ]
    (sweep / "plan.json").write_text(json.dumps({"sweep": "grid", "jobs": jobs}))
    monkeypatch.chdir(tmp_path)
    show(sweep)
    out = capsys.readouterr().out
    assert "3 runs: 1 running, 2 waiting" in out and "job 2     no folder yet: slake is not here yet\n" in out
    assert "second" in out and "elsewhere" not in out
    (sweep / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"grid/plan.json is no plan of a sweep"):
        show(sweep)


def test_an_empty_outputs_and_what_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    show()
    assert capsys.readouterr().out.startswith("no runs in outputs\n")
    with pytest.raises(DataError, match=r"outputs/nothing is not there; name run directories"):
        show(Path("outputs/nothing"))
    with pytest.raises(ConfigError, match=r"refresh is 0 and tail is 0"):
        watch.status_command([], watch=True, refresh=0, tail=0)


def test_tail(made: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("works")
    made("broke", state="failed", error="no")
    older = made("older", state="done", updated=1.0)
    newer = made("newer", state="done", updated=2.0)
    show(tmp_path / "outputs", tail=2)
    out = capsys.readouterr().out
    for name in ("works", "broke"):
        assert f"{name}/train.log\n{name} says 7\n{name} says 8\n" in out
    assert "newer says" not in out and "works says 6" not in out
    show(older, newer, tail=1)
    out = capsys.readouterr().out
    assert "newer says 8" in out and "older says" not in out, "where nothing is at work or wrong, the newest"


def test_gpus_of_nvidia_smi(
    programs: Callable[[str, str], None], made: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    programs("nvidia-smi", """[ "$2" = --format=csv,noheader,nounits ] || exit 1
echo '0, NVIDIA H200, 87, 73031, 143771, 54'
echo '1, NVIDIA H200, [N/A], 12, 143771, 31'""")  # fmt: skip
    show(made("run"))
    out = capsys.readouterr().out
    assert "gpu 0     NVIDIA H200: 87 % busy, memory 71.3/140.4 GiB, 54 °C\n" in out
    assert "gpu 1     NVIDIA H200: – % busy, memory 0.0/140.4 GiB, 31 °C\n" in out


@pytest.mark.parametrize("script", [None, "echo 'NVIDIA-SMI has failed, as it is'; exit 9", "echo No devices found"])
def test_no_gpu_no_line(script: str | None, programs: Callable[[str, str], None]) -> None:
    if script:
        programs("nvidia-smi", script)
    assert machine.gpu_lines() == []


def test_gpus_of_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(gpu: int) -> Any:
        raise NVMLError

    driver = SimpleNamespace(
        NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None, nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda gpu: b"NVIDIA A100", nvmlDeviceGetUtilizationRates=refuse,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=2**30, total=40 * 2**30),
        nvmlDeviceGetTemperature=lambda gpu, sensor: 40,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", driver)  # type: ignore[arg-type]
    assert machine.gpu_lines() == ["gpu 0     NVIDIA A100: – % busy, memory 1.0/40.0 GiB, 40 °C"]


def test_watch_prints_again_until_ctrl_c(made: Callable[..., Path]) -> None:
    folder = made("run").parent
    call = "import sys, pathlib, vlmft.watch as w; w.status_command([pathlib.Path(sys.argv[1])], watch=True, "
    process = subprocess.Popen(
        [sys.executable, "-c", call + "refresh=0.1, tail=0)", str(folder)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += "1 run: 1 running" in line
        if seen == 1:
            (folder / "run" / "status.json").unlink(missing_ok=True)
            (folder / "run" / "config.yaml").unlink(missing_ok=True)
        if "no runs in" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and errors == ""


def test_it_is_light_and_quick(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    heavy = "import sys, vlmft.watch; print([m for m in ('torch', 'numpy', 'matplotlib', 'PIL') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    line = '{"step": 1, "time": 1.0, "loss": 0.5, "learning_rate": 1e-05, "grad_norm": 1.0}\n'
    for number in range(50):
        (made(f"run{number}") / "history.jsonl").write_text(line * 1000)
    before = time.process_time()  # on a busy machine too
    show(made("last").parent)
    assert time.process_time() - before < 1
    assert "51 runs" in capsys.readouterr().out

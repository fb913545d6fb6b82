"""The launcher of hydra_plugins/vlmft_local_gpus: Hydra's own tests of a launcher, and what only this one promises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase
from omegaconf import OmegaConf
from packaging.version import Version

from hydra_plugins.vlmft_local_gpus import LocalGpus, _processes
from tests.conftest import ROOT
from tests.prepared import TRAIN, Prepared
from vlmft.errors import ConfigError
from vlmft.schema import Device

pytestmark = pytest.mark.slow  # every test starts processes

APP = """
import json, os, subprocess, sys, time
from pathlib import Path
import hydra


class Stubborn(Exception):
    def __init__(self, what, why):
        super().__init__(what)

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    began = time.time()
    me = Path(f"{cfg.n}.json")
    told = {"n": cfg.n, "pid": os.getpid(), "began": began, "edited": cfg.edited,
            "environment": {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}}
    Path("config.yaml").write_text(Path("config.yaml").read_text().replace("edited: false", "edited: true"))
    if cfg.n == "raises":
        raise ValueError("no such row")
    if cfg.n == "stubborn":
        raise Stubborn("two words", "one kept")
    if cfg.n == "dies":
        os.kill(os.getpid(), 9)
    if cfg.n == "exits":
        sys.exit(3)
    if cfg.n == "odd":
        return (n for n in "odd")
    print("at work")
    me.write_text(json.dumps(told))
    try:
        time.sleep(cfg.seconds)
    except KeyboardInterrupt:
        me.with_suffix(".interrupted").touch()
        raise
    me.write_text(json.dumps(told | {"ended": time.time()}))

if __name__ == "__main__":
    main()
"""
CONFIG = "defaults:\n  - override hydra/launcher: vlmft_local_gpus\nn: 0\nseconds: 0\nedited: false\n"


@pytest.fixture(autouse=True)
def plugins_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also by apps that lie elsewhere."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what a killed command leaves there goes with the test


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start("n=0,1", …): a sweep of the app in tmp_path, which has begun."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "config.yaml").write_text(CONFIG)
    begun = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "app.py", "-m", "hydra.sweep.dir=sweep", *arguments]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def told(folder: Path) -> dict[Any, Any]:
    """What the jobs wrote, by n."""
    return {record["n"]: record for record in (json.loads(file.read_text()) for file in folder.glob("*.json"))}


def at_work(folder: Path, count: int) -> list[int]:
    """The pids of the jobs, once so many of them are at work."""
    for _ in range(300):
        files = [file for file in folder.glob("*.json") if file.stat().st_size]
        if len(files) == count:
            return [json.loads(file.read_text())["pid"] for file in files]
        time.sleep(0.05)
    raise AssertionError("the jobs did not start")


def gone(pid: int, within: float = 3.0) -> bool:
    """Whether a process is no more, or a zombie that nobody waits for."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_so_many_at_a_time(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("n=0,1,2", "seconds=0.7", "hydra.launcher.slots=2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    jobs = told(tmp_path)
    first, second, third = (jobs[n] for n in range(3))
    assert second["began"] < first["ended"] and first["began"] < second["ended"], "two at a time"
    assert third["began"] >= min(first["ended"], second["ended"]), "and not three"
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert all(job["environment"] == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads} for job in jobs.values())
    assert not any(job["edited"] for job in jobs.values()), "the third has the config it was launched with"
    assert (tmp_path / "sweep" / "logs" / "2.log").read_text() == "at work\n"
    lines = out.splitlines()
    assert lines[0] == "slots     2, on the CPU: no GPU is free"
    assert lines[1:3] == ["start     #0 n=0   (slot 1)", "start     #1 n=1   (slot 2)"], "only what differs is shown"
    assert sum(line.startswith("done ") and line.endswith(" s") for line in lines) == 3 and len(lines) == 7


def test_what_happens_to_one_does_not_touch_the_others(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("n=raises,stubborn,dies,exits,odd,fine", "hydra.launcher.slots=3")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "no such row" in err, "the first failure is raised in the end"
    failed = dict(line.split("n=")[1].split(": ", 1) for line in out.splitlines() if line.startswith("failed "))
    assert failed == {
        "raises": "ValueError: no such row",
        "stubborn": "Stubborn: two words",
        "dies": "killed by SIGKILL: by hand, by the scheduler, or because the machine ran out of memory",
        "exits": "ended with exit code 3",
        "odd": "the job returned what cannot be pickled, <class 'generator'>: cannot pickle 'generator' object",
    }
    assert "done      #5 n=fine" in out and list(told(tmp_path)) == ["fine"]
    assert "Traceback" in (tmp_path / "sweep" / "logs" / "0.log").read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_jobs_end_with_the_command(
    how: signal.Signals, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("n=0,1,2", "seconds=60", "hydra.launcher.slots=2")
    pids = at_work(tmp_path, 2)
    process.send_signal(how)
    out, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert all(gone(pid) for pid in pids)
    assert len(list(tmp_path.glob("*.interrupted"))) == 2, "as after Ctrl-C, so that they can tidy up"
    assert not (tmp_path / "2.json").exists()
    assert ("stopping  2 running, 1 not begun" in out) == (how is not signal.SIGKILL)


def test_who_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processes, "PATIENCE", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    _processes._stop([process])
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that lists two free GPUs, and a busy one between them."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf 'GPU-a, 1, 80000\\nGPU-b, 70000, 80000\\nGPU-c, 1, 80000\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")


def test_each_job_sees_one_gpu(two_gpus: None, start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("n=0,1,2", "seconds=0.5")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    seen = [job["environment"]["CUDA_VISIBLE_DEVICES"] for job in sorted(told(tmp_path).values(), key=lambda j: j["n"])]
    assert seen[:2] == ["GPU-a", "GPU-c"] and seen[2] in seen[:2]
    assert all(job["environment"]["OMP_NUM_THREADS"] is None for job in told(tmp_path).values())
    assert out.startswith("slots     2, on GPU GPU-a, GPU-c\n")


def test_slots(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(slots: int | None, device: Device = Device.auto, jobs: int = 9) -> list[str]:
        launcher = LocalGpus(slots)
        config: Any = OmegaConf.create({"hardware": {"device": device}})
        launcher.setup(hydra_context=None, task_function=print, config=config)  # type: ignore[arg-type]
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in launcher._slots(jobs)]

    assert seen(None) == ["GPU-a", "GPU-c"]
    assert seen(1) == seen(None, jobs=1) == ["GPU-a"]
    assert seen(5) == ["GPU-a", "GPU-c"], "no two runs share a GPU"
    assert seen(3, Device.cpu) == ["", "", ""] and seen(None, Device.cpu) == [""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-b")
    assert seen(None) == ["1", "GPU-b"], "a scheduler's choice stands"
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert seen(2) == ["", ""]
    with pytest.raises(ConfigError, match=r"hardware.slots=0: a number of runs from 1 up, or null"):
        seen(0)


def test_hardware_gpus_is_a_sweep_with_its_slots() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", ["hardware=gpus", "hardware.slots=3"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    launcher = Plugins.instance().instantiate_launcher(None, print, config)  # type: ignore[arg-type]
    assert type(launcher).__name__ == "LocalGpus" and vars(launcher)["slots"] == 3


def test_a_job_that_cannot_be_composed_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def load_sweep_config(master: Any, overrides: list[str]) -> Any:
        raise ConfigError("a.file: gone")

    hydra = {"hydra_logging": {"root": None}, "verbose": False, "sweep": {"dir": str(tmp_path)}}
    context: Any = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=load_sweep_config))
    launcher = LocalGpus()
    launcher.setup(hydra_context=context, task_function=print, config=OmegaConf.create({"hydra": hydra}))
    (outcome,) = launcher.launch([["n=1"]], initial_job_idx=4)
    assert outcome.status is JobStatus.FAILED and list(outcome.overrides or []) == ["n=1"]
    assert "failed    #4 n=1: a.file: gone\n" in capsys.readouterr().out


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import hydra.main, hydra.core.plugins, sys; before = set(sys.modules); import hydra_plugins.vlmft_local_gpus; "
        "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('hydra')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_live_table_follows_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Any] = []

    def live_table(folders: list[Path], labels: list[str] | None = None) -> str:
        tables.append((folders, labels))
        return "the table"

    watch = ModuleType("vlmft.watch")
    monkeypatch.setattr(watch, "live_table", live_table, raising=False)
    monkeypatch.setitem(sys.modules, "vlmft.watch", watch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(_processes, "_SHOW_EVERY", -1.0)
    plan = [{"number": 0, "folder": "outputs/a"}, {"number": 1, "folder": None}, {"number": 2, "folder": "outputs/c"}]
    (tmp_path / "plan.json").write_text(json.dumps({"jobs": plan}))
    with _processes.display([0, 1], tmp_path) as show:
        assert tables[-1] == ([Path("outputs/a")], ["#0 a"]), "a job that has found no folder yet has no row"
        plan[1]["folder"] = "outputs/b"
        (tmp_path / "plan.json").write_text(json.dumps({"jobs": plan}))
        show(None)
        assert tables[-1] == ([Path("outputs/a"), Path("outputs/b")], ["#0 a", "#1 b"])


@pytest.fixture
def as_hydra_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Hydra's tests expect: that nothing in this process has composed a config of version base 1.3 before."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))


@pytest.mark.usefixtures("as_hydra_begins")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("vlmft_local_gpus", [])])
class TestOfHydra(LauncherTestSuite):
    pass


@pytest.mark.usefixtures("as_hydra_begins")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("vlmft_local_gpus", ["hydra.sweeper.max_batch_size=2"])])
class TestOfHydraInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.usefixtures("as_hydra_begins")
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=vlmft_local_gpus", "hydra.launcher.slots=2"])]
)
class TestOfHydraFromOutside(IntegrationTestSuite):
    pass


def test_runs_side_by_side(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    axes = ("dataset=demo_ct,demo_xray", "hardware=gpus", "hardware.slots=2")
    done = command("-m", "model=tiny_glm41v", "method=full", "dataset.max_rows=40", "eval.max_rows=10", *axes,
                   "method.trainer.max_steps=2", "eval.generation.max_new_tokens=64")  # fmt: skip
    assert done.returncode == 0, done.stderr
    statuses = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/status.json")]
    assert [status["state"] for status in statuses] == ["done", "done"]
    assert max(status["started"] for status in statuses) < min(status["updated"] for status in statuses)


def test_runs_are_interrupted_with_the_command(prepared: Prepared, tmp_path: Path) -> None:
    process = prepared.start(
        [TRAIN, "model=tiny_glm41v", "dataset=demo_ct,demo_xray", "method=full",
         "dataset.max_rows=40", "eval=none", "method.trainer.num_train_epochs=500", "hardware=gpus",
         "hardware.slots=2"], tmp_path,
    )  # fmt: skip

    def statuses() -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/status.json")]

    while [status["phase"] for status in statuses()] != ["training", "training"]:
        assert process.poll() is None, process.said()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert [status["state"] for status in statuses()] == ["interrupted", "interrupted"]
    assert all(gone(status["pid"]) for status in statuses())

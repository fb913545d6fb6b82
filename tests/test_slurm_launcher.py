"""How jobs are grouped, submitted and waited for; with stand-ins for Slurm's commands."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from submitit.core.utils import JobPaths

from hydra_plugins.vlmft_slurm import VlmftSlurm, _submission, _waiting
from hydra_plugins.vlmft_slurm._submission import Job, grouped
from tests.conftest import ROOT
from tests.test_slurm import composed, shape
from vlmft import slurm_queue
from vlmft.errors import ConfigError, RunFailed
from vlmft.slurm_queue import JobState


def job(number: int = 0, *overrides: str) -> Job:
    outcome = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
    return Job(number, f"seed={number}", list(overrides), shape("dataset=demo_ct", *overrides), outcome)


def test_one_group_for_each_shape_in_the_order_of_jobs() -> None:
    jobs = [
        job(0),
        job(1, "hardware.memory=9"),
        job(2),
        job(3, "task=eval"),
        job(4, "seed=3", "hardware.micro_batch=1"),
        job(5, "task=eval"),
    ]
    assert [[one.number for one in group] for group in grouped(jobs)] == [[0, 2, 4], [1], [3, 5]]


@pytest.mark.parametrize("hardware", ["slurm", "slurm_multinode"])
def test_hardware_slurm_is_a_sweep_with_this_launcher(hardware: str) -> None:
    config = composed(f"hardware={hardware}", hydra=True)
    assert config.hydra.mode.name == "MULTIRUN" and config.hardware.name == hardware
    launcher = Plugins.instance().instantiate_launcher(None, print, config)  # type: ignore[arg-type]
    assert type(launcher).__name__ == "VlmftSlurm"


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import hydra.main, hydra.core.plugins, sys; import hydra_plugins.hydra_submitit_launcher.submitit_launcher; "
        "before = set(sys.modules); import hydra_plugins.vlmft_slurm; "
        "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('hydra')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """programs("sbatch", "echo …"): a shell script of that name; those of the machine's own Slurm are hidden."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("cat", "cp", "grep"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(_waiting, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(_waiting, "_ASK_EVERY", 0.02)
    monkeypatch.setattr(_waiting, "_ASK_SOON", 0.01)

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    for name in ("squeue", "sacct", "srun"):
        make(name, "exit 1")
    return make


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sequence[JobReturn]]:
    """launch(["dataset=…"], …): the launcher given these jobs, in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def do(*jobs: list[str]) -> Sequence[JobReturn]:
        config = composed("dataset=demo_ct", f"hydra.sweep.dir={tmp_path / 'sweep'}", hydra=True)
        launcher = VlmftSlurm()
        context: Any = SimpleNamespace(
            config_loader=SimpleNamespace(load_sweep_config=lambda _, words: composed(*words))
        )
        launcher.setup(hydra_context=context, task_function=print, config=config)
        return launcher.launch([["dataset=demo_ct", *words] for words in jobs], 0)

    return do


SBATCH = 'n=$(cat count 2>/dev/null || echo 10); echo $((n + 1)) > count; cp "$1" $n.sh; echo Submitted batch job $n'


def test_one_array_for_each_shape_and_no_waiting(
    programs: Callable[[str, str], None], launch: Callable[..., Sequence[JobReturn]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    programs("sbatch", SBATCH)
    returned = launch(*([*words, "hardware.wait=false"] for words in (["seed=0"], ["seed=1"], ["task=eval"])))
    assert [one.return_value for one in returned] == ["10_0", "10_1", "11"]
    assert capsys.readouterr().out.splitlines() == [
        "submitted array 10: 2 x training, each 1 GPU, 64 GB, 24 h",
        "submitted job 11: evaluation, 1 GPU, 32 GB, 12 h",
        f"next      vlmft status --watch {tmp_path / 'sweep'}   then   vlmft report {tmp_path / 'sweep'}",
    ]
    assert slurm_queue.submitted(tmp_path / "sweep") == {0: "10_0", 1: "10_1", 2: "11"}
    script = (tmp_path / "10.sh").read_text()
    asked = ["array=0-1%2", "requeue", "signal=USR2@120", "time=1440", "gpus-per-node=1", "mem=64GB"]
    assert all(f"#SBATCH --{option}\n" in script for option in asked)
    assert f"export PYTHONPATH={ROOT}${{PYTHONPATH" in script
    assert "--kill-on-bad-exit=1" in script and "gres" not in script


def test_what_sbatch_refuses_has_failed_and_the_rest_goes_on(
    programs: Callable[[str, str], None], launch: Callable[..., Sequence[JobReturn]], capsys: pytest.CaptureFixture[str]
) -> None:
    programs("sbatch", f'grep -q mem=999 "$1" && echo "sbatch: error: no such node" >&2 && exit 1\n{SBATCH}')
    fine, refused = launch(["hardware.wait=false"], ["hardware.memory=999", "hardware.wait=false"])
    assert fine.return_value == "10" and refused.status is JobStatus.FAILED
    assert "sbatch refused it: no such node" in str(refused._return_value)
    said = capsys.readouterr()
    assert "refused   training, 1 GPU, 999 GB, 24 h\n          no such node" in said.out and said.err == ""


def test_nothing_is_submitted_where_one_cannot_be_or_there_is_no_slurm(
    programs: Callable[[str, str], None], launch: Callable[..., Sequence[JobReturn]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="there is no sbatch here"):
        launch([])
    programs("sbatch", SBATCH)
    with pytest.raises(ConfigError, match="ask for GPUs twice"):
        launch([], ["hardware.gpus=1", "hardware.gres=gpu:1"])
    assert not (tmp_path / "count").exists()


def test_its_settings_stand_in_hardware(launch: Callable[..., Sequence[JobReturn]]) -> None:
    config = composed("+hydra.launcher.partition=low", hydra=True)
    launcher = Plugins.instance().instantiate_launcher(SimpleNamespace(), print, config)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"hydra.launcher.partition: what Slurm is asked for stands in hardware"):
        launcher.launch([[]], 0)


def submitted(tmp_path: Path, number: int, tasks: int = 1) -> Job:
    one = job(number)
    one.id = f"10_{number}"
    one.tasks = [JobPaths(tmp_path / "%j", one.id, task) for task in range(tasks)]
    one.tasks[0].folder.mkdir()
    return one


def leaves(one: Job, value: Any, task: int = 0, kind: str = "success") -> None:
    one.tasks[task].result_pickle.write_bytes(pickle.dumps((kind, value)))


def failure(why: str) -> JobReturn:
    returned = JobReturn(overrides=[], status=JobStatus.FAILED)
    returned.return_value = RunFailed(f"failed    {why}")
    return returned


def test_each_job_ends_in_its_own_way(
    programs: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [submitted(tmp_path, number, tasks=2) for number in range(7)]
    leaves(jobs[0], JobReturn(overrides=[], status=JobStatus.COMPLETED))
    leaves(jobs[1], failure("outputs/a: no such row\n  log: …"))
    leaves(jobs[2], "Traceback\nImportError: no vlmft\n", kind="error")
    jobs[3].tasks[0].stderr.write_text("srun: error: n1: task 0: Exited with exit code 3\n")
    leaves(jobs[4], JobReturn(overrides=[], status=JobStatus.COMPLETED), task=1)  # the first machine was to lead
    leaves(jobs[5], failure("rank 1: lost"), task=1)
    jobs[6].tasks[0].result_pickle.write_bytes(b"half")
    over = "FAILED|1:0", "FAILED|1:0", "FAILED|3:0", "TIMEOUT|0:0", "FAILED|1:0", "FAILED|1:0"
    programs("squeue", "exit 0")
    programs("sacct", "\n".join(f"echo '10_{n}|{said}'" for n, said in enumerate(over, 1)))
    _waiting.wait_for(jobs, tmp_path)
    ends = sorted(line for line in capsys.readouterr().out.splitlines())
    assert ends[0].startswith("done      #0 seed=0 ")
    for line, words in zip(
        ends[1:],
        ["#1 seed=1: outputs/a: no such row   (job 10_1, log: ", "#2 seed=2: ImportError: no vlmft   (job 10_2, log: ",
         "#3 seed=3: job 10_3 is over: FAILED (it ended with an error): exit code 3, srun: error: n1: task 0: Exited "
         "with exit code 3; log: ", "#4 seed=4: job 10_4 is over: TIMEOUT (it ran out of time",
         "#5 seed=5: rank 1: lost", "#6 seed=6: its result cannot be read"],
        strict=True,
    ):  # fmt: skip
        assert line.startswith(f"failed    {words}"), line
    assert [one.outcome.status.name for one in jobs] == ["COMPLETED"] + ["FAILED"] * 6


def test_without_accounting_a_job_that_died_is_not_waited_for(
    programs: Callable[[str, str], None], tmp_path: Path
) -> None:
    programs("squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    one = submitted(tmp_path, 0)
    _waiting.wait_for([one], tmp_path)
    assert "it is in the queue no more, and Slurm does not say how it ended" in str(one.outcome._return_value)


def test_a_failure_of_an_attempt_that_was_cut_off_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], programs: Any
) -> None:
    one = submitted(tmp_path, 0)
    leaves(one, failure("a loader worker was killed"))
    answers = iter(["RUNNING", "COMPLETED", "PENDING", "RUNNING"])

    def states(jobs: Any) -> dict[str, JobState] | None:
        if (said := next(answers, None)) is None:
            leaves(one, JobReturn(overrides=[], status=JobStatus.COMPLETED))
            return None
        if said == "COMPLETED":
            one.tasks[0].result_pickle.unlink()
        return {"10_0": JobState(said, "n1" if said == "RUNNING" else "BeginTime")}

    monkeypatch.setattr(_waiting, "states", states)
    _waiting.wait_for([one], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["start", "requeued", "start", "done"]
    assert one.outcome.status is JobStatus.COMPLETED


def test_where_slurm_is_silent_results_are_enough(
    programs: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = submitted(tmp_path, 0)
    leaves(one, failure("outputs/a: no such row"))
    _waiting.wait_for([one], tmp_path)
    assert "squeue does not answer" in capsys.readouterr().out
    assert "no such row" in str(one.outcome._return_value)


def test_ctrl_c_leaves_the_jobs_and_says_how_to_end_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_waiting, "result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        _waiting.wait_for([submitted(tmp_path, 0), submitted(tmp_path, 1)], tmp_path)
    assert "the jobs go on without this command; to end them: scancel 10\n" in capsys.readouterr().out


def test_what_needs_no_job_is_done_here(
    programs: Callable[[str, str], None], launch: Callable[..., Sequence[JobReturn]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_submission, "_here", lambda launcher, jobs, first: ["here"] * len(jobs))
    assert launch(["task=plan"], ["task=fetch"]) == ["here", "here"]


def test_states_of_jobs(programs: Callable[[str, str], None]) -> None:
    assert slurm_queue.states([]) == {} and slurm_queue.states(["1"]) is None
    programs(
        "squeue", "echo '7_0|RUNNING|n1'; echo '7_1|PENDING|(Priority)'; echo '7_2|COMPLETING|n1'; echo '8|FAILED|'"
    )
    programs("sacct", "echo '7_3|CANCELLED by 0|0:0'; echo '7_3.0|CANCELLED|0:9'; echo '8|FAILED|0:9'")
    found = slurm_queue.states(["7_0", "7_1", "7_2", "7_3", "8", "9"])
    assert found is not None
    assert {job: (state.short, state.over) for job, state in found.items()} == {
        "7_0": ("RUNNING", False), "7_1": ("PENDING", False), "7_2": ("COMPLETING", False),
        "7_3": ("CANCELLED", True), "8": ("FAILED", True), "9": ("not in the queue", True),
    }  # fmt: skip
    assert found["7_1"].note == "Priority" and found["8"].note == "signal 9"

"""Which jobs of Slurm runs belong to, and lines that say how those are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmft.files import read_json
from vlmft.slurm_queue import SUBMITTED, JobState, submitted
from vlmft.sweep import PLAN


def slurm_jobs(folders: Sequence[Path], paths: Sequence[Path]) -> dict[Path, str]:
    """The last job of each run that Slurm does: as the run itself says, or a newer one that a sweep among the paths
    has submitted for it, and that may still wait."""
    found = {folder: job for folder in folders if (job := _of_last_attempt(folder))}
    for sweep_dir in paths:
        if not (jobs := submitted(sweep_dir)):
            continue
        plan = read_json(sweep_dir / PLAN) or {}
        asked = (sweep_dir / SUBMITTED).stat().st_mtime
        for planned in plan.get("jobs", []):
            folder, job = Path(planned.get("folder") or ""), jobs.get(planned["number"])
            begun = folder / "provenance.json"
            if job and folder in folders and not (begun.is_file() and begun.stat().st_mtime >= asked):
                found[folder] = job
    return found


def queue_lines(jobs: Mapping[Path, str], states: Mapping[str, JobState] | None) -> list[str]:
    """For each run's job of Slurm: the job's state, and the log of the run; `states` is None where Slurm is silent."""
    if states is None:
        return [f"slurm     squeue does not answer; of its jobs: {', '.join(jobs.values())}"] if jobs else []
    lines = []
    for folder, job in jobs.items():
        state = states[job]
        note = f" ({state.note})" if state.waits and state.note else ""
        lines.append(f"slurm     {job} {state.short}{note}, log: {folder / 'train.log'}")
    return lines


def _of_last_attempt(folder: Path) -> str | None:
    """The job of the run's last attempt, by the number its user knows: 41, or 42_1 of an array; None before that."""
    try:
        job = read_json(folder / "provenance.json")["attempts"][-1]["slurm"]
        array, element = job.get("SLURM_ARRAY_JOB_ID"), job.get("SLURM_ARRAY_TASK_ID")
        return f"{array}_{element}" if array and element else job.get("SLURM_JOB_ID")
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None

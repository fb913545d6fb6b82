"""A sweep on disk: its name, what it will hold, and the configs its jobs were launched with.

`multirun_reports/<sweep>/plan.json` is written before the first job starts, so that a report can say what is missing,
and `jobs/<number>.yaml` holds each job's config: editing a file of conf/ while a job waits does not change the job.
"""

from __future__ import annotations

import copy
import difflib
import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vlmft.config_check import check
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation.evaluate import chosen_sets
from vlmft.files import read_json, write_json, write_text
from vlmft.identity import base_name, digest, evaluated_name, run_name
from vlmft.schema import Config, Task
from vlmft.training import init_from

REPORTS = Path("multirun_reports")
PLAN = "plan.json"
LEAVES_RUNS = (Task.train, Task.eval)  # the other tasks have no plan and no report
FIXED = {
    "hardware": "it chooses the launcher of the whole sweep, once",
    "experiment": "its axes and settings are those of the whole sweep",
}


def folder_of(named: str, experiment: str | None, axes: Mapping[str, Sequence[str]]) -> Path:
    """Where a sweep's report goes: named by `sweep=`, by its experiment, or by a hash of its axes. Relative to the
    working directory. Raises ConfigError for a name that is no plain file name."""
    name = named or experiment or f"sweep-{digest(sorted((key, list(values)) for key, values in axes.items()))}"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"sweep={name}: use letters, digits, '_', '-' and '.', as it names a folder")
    return REPORTS / name


def refuse_fixed_axes(axes: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError where a sweep has an axis that cannot be one."""
    for key, reason in FIXED.items():
        if len(axes.get(key, ())) > 1:
            raise ConfigError(
                f"{key}={','.join(axes[key])} cannot be swept: {reason}; give one, and a command for each"
            )


def write_plan(
    folder: Path, axes: Mapping[str, Sequence[str]], jobs: Sequence[tuple[Sequence[str], DictConfig]]
) -> None:
    """Freeze the jobs (overrides and composed config of each) and write what the sweep will hold.

    Raises ConfigError, and writes nothing, where one of them cannot be run.
    """
    settings = [_without_hydra(cfg) for _, cfg in jobs]
    planned = [entry for number, cfg in enumerate(settings) for entry in _planned(number, jobs[number][0], cfg)]
    frozen = folder / "jobs"
    frozen.mkdir(parents=True, exist_ok=True)
    for number, cfg in enumerate(settings):
        write_text(frozen / f"{number}.yaml", _settings(cfg))
    plan = {
        "sweep": folder.name,
        "command": ["python", os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "axes": {key: list(values) for key, values in axes.items()},
        "jobs": planned,
    }
    with _locked(folder):
        before = read_json(folder / PLAN) or {}
        if {**before, "created": None} != {**plan, "created": None}:
            write_json(folder / PLAN, plan)


def _planned(number: int, overrides: Sequence[str], cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """What the plan says of a job; of one with stages, what it says of each."""
    folder: str | None = None
    for place, (stage, config) in enumerate(init_from.stages(check(cfg)).items()):
        earlier, folder, base, error = folder, None, None, None
        try:
            if place == 0:
                folder, base = _folders(config)
            elif earlier:
                folder, base = _folders(replace(config, init_from=earlier))
        except DataError as problem:
            # Its data is fetched by the job, or the stage before is not done; then the job says where it is.
            error = str(problem) if place == 0 else None
        yield {
            "number": number,
            **({"stage": stage} if stage else {}),
            "overrides": list(overrides),
            "folder": folder,
            "base": base,
            "sets": list(chosen_sets(config.eval, config.dataset)),
            "config": {
                "model": {"name": config.model.name},
                "dataset": {"name": config.dataset.name, "sets": dict.fromkeys(config.dataset.sets)},
                "method": {"name": config.method.name},
                "seed": config.seed,
            },
            "error": error,
        }


def _folders(config: Config) -> tuple[str, str | None]:
    """The run directory of a job, and that of its model as it is, where that is evaluated too."""
    outputs = Path(config.paths["outputs"])
    if config.task is Task.eval:
        return str(outputs / evaluated_name(config)), None
    base = str(outputs / base_name(config.model, config.method.quantization))
    return str(outputs / run_name(config)), base if config.eval.baseline else None


def this_job() -> tuple[Path, int] | None:
    """The sweep's folder and the job's number; None where this is no job of a planned sweep."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN or OmegaConf.is_missing(hydra.job, "num"):
        return None
    folder = Path(hydra.sweep.dir)
    return (folder, int(hydra.job.num)) if (folder / PLAN).is_file() else None


def as_launched(cfg: DictConfig) -> DictConfig:
    """The config a job was launched with; where a file of conf/ was edited since, it says so and what is left out."""
    job = this_job()
    if job is None or not (file := job[0] / "jobs" / f"{job[1]}.yaml").is_file():
        return cfg
    then, now = file.read_text(encoding="utf-8"), _settings(cfg)
    if then == now:
        return cfg
    changed = [
        line
        for line in difflib.unified_diff(then.splitlines(), now.splitlines(), "as launched", "now", n=0, lineterm="")
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]
    print(f"launched  the config has changed since; this job keeps {file}, without", *changed, sep="\n          ")
    frozen: Any = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file))
    return frozen


def found(folder: Path, config: Config, stage: str = "") -> None:
    """Tell the plan where this job's run is (that of a stage), where it could not know before what decides it was."""
    job = this_job()
    if job is None:
        return
    with _locked(job[0]):
        plan = read_json(job[0] / PLAN)
        mine = ((entry["number"], entry.get("stage", "")) for entry in plan["jobs"])
        entry = plan["jobs"][list(mine).index((job[1], stage))]
        if entry["folder"] != str(folder):
            entry["folder"], entry["base"] = _folders(config)
            write_json(job[0] / PLAN, plan)


def report_of_this_job() -> None:
    """Renew the report of the sweep that this job belongs to, so that it is there even if the sweep is killed."""
    if (job := this_job()) is not None:
        report(job[0], say=False)


def report(folder: Path, say: bool = True) -> None:
    """Renew the report of a sweep where a run has changed since; a report that fails never fails a run."""
    if not (folder / PLAN).is_file():
        return  # nothing was launched
    try:
        from vlmft.report import build, scan

        began = time.time()
        found = scan.sweep(folder)
        if _stale(folder, found.runs):
            build.build(found, folder)
            # As old as what it was made from: a run that ended meanwhile is newer.
            os.utime(folder / "index.html", (began, began))
        if say:
            print(f"sweep     {found.describe()}\nreport    {folder / 'index.html'}", flush=True)
    except Exception as error:
        print(f"report    {folder} could not be renewed: {type(error).__name__}: {error}", file=sys.stderr)


def _stale(folder: Path, runs: Sequence[Any]) -> bool:
    page = folder / "index.html"
    if not page.is_file():
        return True
    files = [folder / PLAN, *(run.folder / name for run in runs for name in ("status.json", "result.json"))]
    return any(file.stat().st_mtime > page.stat().st_mtime for file in files if file.is_file())


def _without_hydra(cfg: DictConfig) -> DictConfig:
    """The config as a job is given it."""
    own = copy.deepcopy(cfg)
    with read_write(own), open_dict(own):
        del own["hydra"]
    return own


def _settings(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(cfg, resolve=True)  # in their order, which is that of stages


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Jobs that run at the same time change the plan one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".plan.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

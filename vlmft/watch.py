"""`vlmft status`: how far runs are, read from their directories alone, once or again and again. It never writes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vlmft import history, slurm_queue, status
from vlmft.errors import ConfigError, DataError
from vlmft.files import read_json
from vlmft.machine import gone, gpu_lines, locked
from vlmft.slurm_queue import GONE, JobState
from vlmft.slurm_runs import queue_lines, slurm_jobs
from vlmft.sweep import PLAN

OUTPUTS = Path("outputs")
DIED, WAITING, STARTING, REQUEUED = "died", "waiting", "starting", "requeued"  # which no status file says
_ORDER = ("running", STARTING, "failed", DIED, "interrupted", REQUEUED, WAITING, "done")
_COLOURS = {
    "running": "cyan", STARTING: "cyan", "failed": "red", DIED: "red", "interrupted": "yellow", REQUEUED: "yellow",
    "done": "green",
}  # fmt: skip
_MARKS = "▁▂▃▄▅▆▇█"
_RECENT = 20  # losses in the moving average
_ERROR = 120  # characters of an error
_WIDE = 160  # columns that rows of one line need; a pipe gets as many, and is not taken for 80
_FRESH = 60  # seconds since a run has written, in which it is not called dead because no queue knows its job
_LOG_BYTES_PER_LINE = 4096  # read from the end of a log, for each line that is asked for


def status_command(paths: Sequence[Path], *, watch: bool, refresh: float, tail: int) -> None:
    """Print the state of runs: of those named, of those in the folders or sweeps named, or of all in outputs/.

    `watch` shows it anew every `refresh` seconds until Ctrl-C. ConfigError, or DataError for a path that is not there.
    """
    if refresh <= 0 or tail < 0:
        raise ConfigError(f"refresh is {refresh:g} and tail is {tail}: seconds above 0, and lines from 0 on, are right")
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} is not there; name run directories, a folder of them, or a sweep's folder")
    console = Console(width=None if sys.stdout.isatty() else max(_WIDE, Console().width))

    def view() -> Group:
        return _view(paths, tail, console.width, clock=watch)

    if not watch:
        console.print(view())
        return
    try:
        if not console.is_terminal:
            while True:
                console.print(view())
                time.sleep(refresh)
        with Live(view(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(refresh)
                live.update(view(), refresh=True)
    except KeyboardInterrupt:
        return


def live_table(folders: Sequence[Path], labels: Sequence[str] | None = None) -> Table:
    """A row for each run, also for one that is planned and has no folder yet; errors stand below, as its caption."""
    names = labels or [_name(folder) for folder in folders]
    return _table([(name, folder, look(folder)) for name, folder in zip(names, folders, strict=True)], Console().width)


def look(folder: Path) -> dict[str, Any]:
    """The run's status.json, with the state as it is now: one that its process cannot have told is found out."""
    found = _status(folder)
    if not found:
        return {"state": STARTING if locked(folder) else WAITING}
    if found.get("state") != "running" or not gone(found) or locked(folder):
        return found
    again = _status(folder) or found  # it may have ended while we looked
    if again.get("state") != "running":
        return again
    why = f"process {found['pid']} is gone and could not say why (killed, or the machine went down)"
    return again | {"state": DIED, "eta": None, "error": why}


def _by_slurm(folder: Path, seen: dict[str, Any], job: JobState | None) -> dict[str, Any]:
    """What was seen of a run, with what Slurm knows better: that its job is over, or waits in the queue again."""
    state = seen.get("state")
    if job is None or state == "done":
        return seen
    if job.waits:
        return seen if state == WAITING else seen | {"state": REQUEUED, "eta": None, "error": None}
    if not job.over or state not in ("running", WAITING, DIED) or locked(folder):
        return seen
    if job.state == GONE and time.time() - seen.get("updated", 0) < _FRESH:
        return seen
    again = _status(folder) or seen  # it may have ended while we looked
    if again.get("state") not in ("running", None, WAITING, DIED):
        return again
    return again | {"state": DIED, "eta": None, "error": f"its job of Slurm is over: {job.meaning()}"}


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """The course of the values in at most `width` characters, each the mean of its share of them, the newest last."""
    count = min(len(values), width)
    ends = [len(values) * n // count for n in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = len(_MARKS) / (high - low) if high > low else 0.0
    return "".join(_MARKS[min(int((mean - low) * scale), len(_MARKS) - 1)] for mean in means)


def _view(paths: Sequence[Path], tail: int, width: int, clock: bool) -> Group:
    """Everything that is shown at once."""
    folders, notes = _folders(paths or [OUTPUTS])
    rows = [(_name(folder), folder, look(folder)) for folder in folders]
    jobs = slurm_jobs([folder for _, folder, seen in rows if seen.get("state") != "done"], paths)
    queue = slurm_queue.states(set(jobs.values()))
    if queue:
        rows = [(name, folder, _by_slurm(folder, seen, queue.get(jobs.get(folder, "")))) for name, folder, seen in rows]
    rows.sort(key=lambda row: _ORDER.index(row[2]["state"]) if row[2].get("state") in _ORDER else len(_ORDER))
    states = [str(seen.get("state")) for _, _, seen in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    summary = f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}: {counts}"
    if not rows:
        summary = f"no runs in {', '.join(map(str, paths or [OUTPUTS]))}"
    lines = [f"{time.strftime('%H:%M:%S')}  {summary}" if clock else summary, *notes, *gpu_lines()]
    lines += queue_lines(jobs, queue)
    for folder in _told(rows) if tail else []:
        lines += ["", f"log       {folder / 'train.log'}", *_last_lines(folder / "train.log", tail)]
    return Group(*([_table(rows, width)] if rows else []), *(Text(line, overflow="fold") for line in lines))


def _table(rows: Sequence[tuple[str, Path, dict[str, Any]]], width: int) -> Table:
    """On a narrow terminal what belongs together stands one below the other, so that names have room."""
    wide = width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 1), caption_justify="left", caption_style="")
    table.add_column("run", overflow="fold", min_width=14)
    table.add_column("state", max_width=None if wide else len("interrupted,"))
    for heading in (("step",), ("elapsed", "left"), ("loss", f"mean {_RECENT}"), ("grad norm",)):
        for part in heading if wide else ["\n".join(heading)]:
            table.add_column(part.replace(" norm", "\nnorm") if not wide else part, justify="right", no_wrap=True)
    table.add_column("loss so far", no_wrap=True)
    errors = []
    for name, folder, seen in rows:
        state, losses = str(seen.get("state")), history.losses(folder)
        recent = losses[-_RECENT:]
        pairs = (
            (_clock(_elapsed(seen)), _clock(seen.get("eta"))),
            (_figure(seen.get("loss")), _figure(sum(recent) / len(recent) if recent else None)),
        )
        cells = [cell for pair in pairs for cell in (pair if wide else ["\n".join(pair).rstrip()])]
        steps = _steps(seen) if wide else _steps(seen).replace(" ", "\n")
        phase = f"{state}, {seen['phase']}" if seen.get("phase") else state
        table.add_row(
            Text(name), Text(phase, style=_COLOURS.get(state, "")),
            *map(Text, (steps, *cells, _figure(seen.get("grad_norm")), sparkline(losses))),
        )  # fmt: skip
        if error := str(seen.get("error") or "").strip():
            first = error.splitlines()[0]
            errors.append(f"{name}: {first if len(first) <= _ERROR else first[: _ERROR - 1] + '…'}")
    table.caption = Text("\n".join(errors)) if errors else None
    return table


def _folders(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The run directories that the paths mean, each once, and a note on each job that has none yet."""
    folders, notes = [], []
    for path in paths:
        if (path / PLAN).is_file():
            for job in _jobs(path / PLAN):
                folders += [Path(place) for place in (job.get("base"), job.get("folder")) if place]
                if not job.get("folder"):
                    why = str(job.get("error") or "").splitlines()[:1]
                    notes.append(f"job {job['number']:<5} no folder yet{''.join(f': {line}' for line in why)}")
        elif _is_run(path) or not path.is_dir():
            folders.append(path)
        else:
            folders += [found for found in _below(path) if _is_run(found)]
    return list(dict.fromkeys(folders)), notes


def _jobs(plan: Path) -> list[dict[str, Any]]:
    try:
        return list(read_json(plan)["jobs"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{plan} is no plan of a sweep: {error or type(error).__name__}") from error


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and ".old-" not in path.name)
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "status.json"))


def _name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name  # "." has none


def _status(folder: Path) -> dict[str, Any]:
    try:
        return status.read(folder)
    except OSError:  # the folder goes away just now, or is another user's
        return {}


def _told(rows: Sequence[tuple[str, Path, dict[str, Any]]]) -> list[Path]:
    """The runs whose log is of interest: those at work or gone wrong, else the newest."""
    wanted = [folder for _, folder, seen in rows if seen.get("state") in ("running", STARTING, "failed", DIED)]
    begun = [(seen["updated"], folder) for _, folder, seen in rows if seen.get("updated")]
    return wanted or [folder for _, folder in sorted(begun)[-1:]]


def _last_lines(file: Path, count: int) -> list[str]:
    try:
        with open(file, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - count * _LOG_BYTES_PER_LINE))
            return log.read().decode("utf-8", errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _steps(seen: dict[str, Any]) -> str:
    """Steps of the phase under way; of a run that is done they would be those of its last evaluation."""
    step, total = seen.get("step"), seen.get("total")
    if seen.get("state") == "done" or step is None or not total:
        return ""
    return f"{step}/{total} {100 * step // total}%"


def _elapsed(seen: dict[str, Any]) -> float | None:
    if not seen.get("started"):
        return None
    until = time.time() if seen.get("state") == "running" else seen.get("updated", seen["started"])
    return until - seen["started"]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

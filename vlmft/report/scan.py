"""Run directories and a sweep's plan, read into one value that everything in the report is made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vlmft import history, status
from vlmft.errors import DataError
from vlmft.evaluation.predictions import predictions_file, read_predictions
from vlmft.files import read_json
from vlmft.sweep import PLAN

STATES = DONE, RUNNING, FAILED, INTERRUPTED, MISSING = "done", "running", "failed", "interrupted", "missing"
ERROR_LINES = 5
# What changes neither the weights nor the answers, or only where they are made.
_APART = frozenset({"task", "paths", "hardware", "label", "tracking", "force", "runs", "check", "log_level"})
_OF_SERVERS = ("eval.url", "eval.api_key_env", "eval.concurrency", "eval.retries", "eval.timeout", "eval.judge.")


@dataclass(frozen=True)
class Run:
    """One run directory, or a run that was planned and has none yet."""

    folder: Path
    config: Mapping[str, Any]  # of config.yaml; of the planned job where there is no folder yet
    result: Mapping[str, Any]  # of result.json, or empty
    status: Mapping[str, Any]  # of status.json, or empty
    planned_sets: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def base(self) -> bool:
        """Whether these are the scores of a model as it is, without training."""
        return bool(self.config.get("task") == "eval")

    @property
    def model(self) -> str:
        return str(self.config.get("model", {}).get("name", ""))

    @property
    def dataset(self) -> str:
        """What it was trained on; "" for a base model."""
        return "" if self.base else str(self.config.get("dataset", {}).get("name", ""))

    @property
    def method(self) -> str:
        return "" if self.base else str(self.config.get("method", {}).get("name", ""))

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def trained_sets(self) -> list[str]:
        """The sets that it was trained on: a mixture's members, or the one, and those of the runs it started from."""
        members = self.config.get("dataset", {}).get("sets") or {}
        earlier = (name for entry in self.evaluations.values() for name in entry.get("leakage") or {})
        return [] if self.base else list(dict.fromkeys([*(members or [self.dataset]), *earlier]))

    @property
    def state(self) -> str:
        if not self.status:
            return MISSING
        return str(self.status.get("state", MISSING))

    @property
    def evaluations(self) -> Mapping[str, Any]:
        """Entries of result.json by set, without the passes that show no pictures (`<set>.<pass>`)."""
        found = self.result.get("evaluations") or {}
        return {name: entry for name, entry in found.items() if "." not in name}

    def cell(self, name: str) -> str:
        """State of the run's scores on a set: done, or that of the run, which is missing them."""
        if name in self.evaluations:
            return DONE
        return MISSING if self.state == DONE else self.state

    def error(self) -> str:
        """The last lines of what went wrong; "" where nothing did."""
        if self.state not in (FAILED, INTERRUPTED):
            return ""
        return "\n".join(str(self.status.get("error") or "").strip().splitlines()[-ERROR_LINES:])

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What decides about the run, by dotted key, and the names of a mixture's members."""
        kept = {key: value for key, value in self.config.items() if key not in _APART}
        members = (kept.get("dataset") or {}).get("sets")
        found = {key: value for key, value in _flat(kept) if not key.startswith(_OF_SERVERS)}
        return found | ({"dataset.sets": ", ".join(members)} if members else {})

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Figures logged in training, by step: loss, eval_loss, learning_rate, grad_norm."""
        return history.read(self.folder)

    def predictions(self, name: str) -> list[dict[str, Any]]:
        return read_predictions(predictions_file(self.folder, name))


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, or of the folders that were named, with what was planned."""

    name: str
    runs: Sequence[Run]
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sets(self) -> list[str]:
        """Every set that is scored or planned, in the order of first appearance."""
        named = (name for run in self.runs for name in (*run.planned_sets, *run.evaluations))
        return list(dict.fromkeys(named))

    @property
    def protocols(self) -> list[str]:
        """Every protocol there are scores of."""
        entries = (entry for run in self.runs for entry in run.evaluations.values())
        return list(dict.fromkeys(protocol for entry in entries for protocol in entry["scores"]))

    def describe(self) -> str:
        """Its cells in words: how many are done, and what became of the others."""
        states = Counter(run.cell(name) for run in self.runs for name in run.planned_sets or run.evaluations)
        counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
        return f"{self.name}: {len(self.runs)} runs, {sum(states.values())} cells: {counts or 'none'}"

    def base_of(self, run: Run) -> Run | None:
        """The scores of the model that `run` was trained from, where they are here."""
        same = (other for other in self.runs if other.base and other.model == run.model and other is not run)
        return next(same, None)


def sweep(folder: Path) -> Sweep:
    """The sweep whose `multirun_reports/<sweep>` is `folder`. DataError where it holds no plan."""
    plan = read_json(folder / PLAN)
    if plan is None:
        raise DataError(f"{folder} holds no {PLAN}: it is no folder of a sweep")
    planned: dict[str, dict[str, Any]] = {}
    sets: dict[str, list[str]] = {}
    nameless: list[Run] = []
    for job in plan["jobs"]:
        if not job["folder"]:  # its data is not here, or the stage before is not done, so that its run has no name
            place = Path(f"job {job['number']}{'-' * ('stage' in job)}{job.get('stage', '')}")
            state = {"state": FAILED, "error": job["error"]} if job["error"] else {}
            nameless.append(Run(place, job["config"], {}, state, job["sets"]))
        for place, task in ((job["folder"], "train"), (job["base"], "eval")):
            if place:
                planned[place] = {"task": task, **job["config"]}
                sets[place] = [*sets.get(place, []), *job["sets"]]
    runs = [read_run(Path(place), config, list(dict.fromkeys(sets[place]))) for place, config in planned.items()]
    return Sweep(folder.name, [*runs, *nameless], plan)


def runs_below(paths: Sequence[Path]) -> Sweep:
    """The runs that are, or lie directly below, the paths. DataError where there are none."""
    folders = [
        folder
        for path in paths
        for folder in ([path] if (path / "config.yaml").is_file() else sorted(path.glob("*/")))
        if (folder / "config.yaml").is_file() and ".old-" not in folder.name
    ]
    if not folders:
        raise DataError(f"{', '.join(map(str, paths))}: no run directories; name some, a folder of them, or a sweep's")
    name = paths[0].resolve().name if len(paths) == 1 else "runs"
    return Sweep(name, [read_run(folder) for folder in folders])


def read_run(folder: Path, planned: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> Run:
    config = planned or {}
    if (folder / "config.yaml").is_file():
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), loader)
    return Run(folder, config, read_json(folder / "result.json") or {}, status.read(folder), sets)


def _flat(node: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value

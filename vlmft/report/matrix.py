"""The cross-evaluation matrix and what can be read off it, as plain data: which model answers which set how well."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vlmft.evaluation import statistics
from vlmft.evaluation.floors import QUESTION_ONLY
from vlmft.evaluation.protocols import PROTOCOLS
from vlmft.report.scan import DONE, FAILED, INTERRUPTED, MISSING, Run, Sweep
from vlmft.report.to_base import Comparisons

BASE, INDIVIDUAL, COMBINED = KINDS = ("base", "individual", "combined")  # models, in the order of the rows
MOST_SETTINGS = 3  # in a row's label


@dataclass(frozen=True)
class Cell:
    """The scores of one run on one set under one protocol."""

    run: Run
    set: str
    state: str  # DONE, or why there is no value
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unparsed: float | None = None
    metric: str = ""  # the headline one
    in_domain: bool = False  # the run was trained on the set
    to_base: Mapping[str, Any] | None = None  # `comparison.compare` of its base model and it, with `p_holm`
    floor: float | None = None  # the metric of what the question alone gives away
    smallest_difference: float | None = None


@dataclass(frozen=True)
class Matrix:
    """One row per run: base models, then those trained on one set, then those trained on several."""

    protocol: str
    sets: list[str]
    rows: list[tuple[str, Run, list[Cell]]]


def matrix(sweep: Sweep, protocol: str, cache: Path | None = None) -> Matrix:
    """The matrix under a protocol. Comparisons to the base model are kept in the JSON file `cache`.

    Their p-values are adjusted by Holm over the whole matrix. Raises ValueError as `judge`.
    """
    sets = sweep.sets
    runs = sorted(sweep.runs, key=lambda run: KINDS.index(kind_of(run)))
    bases = {run.model: sweep.base_of(run) for run in {run.model: run for run in runs if not run.base}.values()}
    compared = Comparisons(protocol, cache)
    rows = []
    for label, run in zip(labels(runs), runs, strict=True):
        base = None if run.base else bases[run.model]
        cells = [_cell(run, name, protocol) for name in sets]
        if base and protocol in PROTOCOLS:
            cells = [replace(cell, to_base=compared.of(base, run, cell.set)) if cell.n else cell for cell in cells]
        rows.append((label, run, cells))
    compared.keep()
    return Matrix(protocol, sets, _adjusted(rows))


def kind_of(run: Run) -> str:
    """BASE, INDIVIDUAL (trained on one set) or COMBINED (on several)."""
    return BASE if run.base else INDIVIDUAL if len(run.trained_sets) == 1 else COMBINED


def _cell(run: Run, name: str, protocol: str) -> Cell:
    entry = run.evaluations.get(name, {})
    scores = entry.get("scores", {}).get(protocol)
    state = run.cell(name)
    if scores is None:  # also where it was scored, but not under this protocol
        return Cell(run, name, MISSING if state == DONE else state, in_domain=name in run.trained_sets)
    head = scores["headline"]
    found = scores["metrics"].get(head, {})
    return Cell(
        run,
        name,
        state,
        value=found.get("value"),
        low=found.get("low"),
        high=found.get("high"),
        n=found.get("n", entry["n"]),
        unparsed=scores["unparsed_rate"],
        metric=head,
        in_domain=name in run.trained_sets,
        floor=entry.get("floor", {}).get(QUESTION_ONLY, {}).get(protocol, {}).get(head),
        smallest_difference=entry.get("smallest_difference"),
    )


def _adjusted(rows: list[tuple[str, Run, list[Cell]]]) -> list[tuple[str, Run, list[Cell]]]:
    found = [cell.to_base["p"] for _, _, cells in rows for cell in cells if cell.to_base]
    adjusted = iter(statistics.holm(found))

    def of(cell: Cell) -> Cell:
        return replace(cell, to_base={**cell.to_base, "p_holm": next(adjusted)}) if cell.to_base else cell

    return [(label, run, [of(cell) for cell in cells]) for label, run, cells in rows]


def labels(runs: Sequence[Run]) -> list[str]:
    """What tells each run from the others, in words: model, data, method, seed; else its settings or its name."""
    models = {run.model for run in runs}
    trained = [run for run in runs if not run.base]
    methods, seeds = {run.method for run in trained}, {run.seed for run in trained}
    found = []
    for run in runs:
        parts = [run.model] if len(models) > 1 else []
        if run.base:
            parts.append("base")
        else:
            members = len(run.trained_sets)
            parts.append(run.dataset if members < 2 else f"{run.dataset} ({members} sets)")
            parts += [run.method] if len(methods) > 1 else []
            parts += [f"seed {run.seed}"] if len(seeds) > 1 else []
        found.append(" · ".join(parts))
    for label in [label for label, count in Counter(found).items() if count > 1]:
        places = [place for place, one in enumerate(found) if one == label]
        # Of a run that is missing the settings are not known in full; it goes by its name.
        apart = _differing([runs[place] for place in places if runs[place].state != MISSING])
        for place in places:
            name = runs[place].name
            said = [f"{row['setting'].rpartition('.')[2]}={spelt(row['values'].get(name))}" for row in apart]
            told = 0 < len(said) <= MOST_SETTINGS and runs[place].state != MISSING
            found[place] = " · ".join([label, *said]) if told else name
    return [run.name if found.count(label) > 1 else label for label, run in zip(found, runs, strict=True)]


def spelt(value: Any) -> str:
    """A setting's value as config.yaml spells it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differences(sweep: Sweep) -> list[dict[str, Any]]:
    """The settings in which trained runs differ: {"setting", "values": {run: value}}, a run without it left out.

    Settings that say where things lie or are made, and absolute paths, are left out.
    """
    return _differing([run for run in sweep.runs if not run.base and run.state != MISSING])


def _differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    settings = {run.name: run.settings for run in runs}
    found = []
    for key in dict.fromkeys(key for of_run in settings.values() for key in of_run):
        values = {name: of_run[key] for name, of_run in settings.items() if key in of_run}
        if any(map(_place, values.values())):
            continue
        # What is said of one member of a mixture is compared among the runs that have it.
        lacking = len(values) < len(settings) and not key.startswith("dataset.sets.")
        if lacking or len({*map(repr, values.values())}) > 1:
            found.append({"setting": key, "values": values})
    return found


def _place(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/")


def seeds(matrix: Matrix) -> list[dict[str, Any]]:
    """Runs that differ in nothing but the seed: {"label", "runs", "seeds", "spread": {set: `seed_spread`}}."""
    groups: dict[str, list[tuple[Run, list[Cell]]]] = {}
    for _, run, cells in matrix.rows:
        if not run.base and any(cell.value is not None for cell in cells):
            kept = {key: value for key, value in run.settings.items() if key != "seed" and not key.startswith("eval.")}
            groups.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append((run, cells))
    found = []
    for members in groups.values():
        if len({run.seed for run, _ in members}) < 2:
            continue
        spread = {}
        for place, name in enumerate(matrix.sets):
            scored = [cells[place] for _, cells in members if cells[place].value is not None]
            alike = [cell for cell in scored if (cell.metric, cell.n) == (scored[0].metric, scored[0].n)]
            values = [cell.value for cell in alike if cell.value is not None]
            if len(values) > 1:
                spread[name] = statistics.seed_spread(values) | {"metric": alike[0].metric}
        runs = [run for run, _ in members]
        label = f"{runs[0].model} · {runs[0].dataset} · {runs[0].method}"
        found.append({"label": label, "runs": runs, "seeds": [run.seed for run in runs], "spread": spread})
    return found


def transfer(matrix: Matrix) -> list[dict[str, Any]]:
    """Per row and metric the unweighted means over the sets that it was trained on, and over the others.

    {"label", "run", "metric", "in_domain", "transfer": mean or None, "in_domain_sets", "transfer_sets"}
    """
    found = []
    for label, run, cells in matrix.rows:
        scored = [(cell, cell.value) for cell in cells if cell.value is not None]
        for metric in dict.fromkeys(cell.metric for cell, _ in scored):
            row: dict[str, Any] = {"label": label, "run": run, "metric": metric}
            for name, trained in (("in_domain", True), ("transfer", False)):
                own = [(c.set, value) for c, value in scored if c.metric == metric and c.in_domain is trained]
                row[name] = fmean(value for _, value in own) if own else None
                row[f"{name}_sets"] = [one for one, _ in own]
            found.append(row)
    return found


def failures(sweep: Sweep) -> list[dict[str, str]]:
    """What did not come to its end: {"run", "state", "error": its last lines}."""
    return [
        {"run": run.name, "state": run.state, "error": run.error()}
        for run in sweep.runs
        if run.state in (FAILED, INTERRUPTED, MISSING)
    ]


def counts(sweep: Sweep) -> dict[str, int]:
    """How many runs are in each state; a planned one that never began is missing."""
    return dict(Counter(run.state for run in sweep.runs))

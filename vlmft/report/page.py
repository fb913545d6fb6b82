"""`index.html`: a sweep on one page that needs nothing else, to be opened from a disk or put beside a paper."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vlmft.evaluation.protocols import PROTOCOLS
from vlmft.report import sections
from vlmft.report.curves import curves
from vlmft.report.gallery import EDGE, RUNS, gallery
from vlmft.report.groups import breakdowns
from vlmft.report.heat import heat
from vlmft.report.markup import Markup, html, paragraph
from vlmft.report.matrix import Matrix, counts
from vlmft.report.scan import STATES, Sweep

Section = tuple[str, str, Markup]  # anchor, title, what it says


def page(sweep: Sweep, matrices: Sequence[Matrix], figures: Sequence[Path] = (), *, images: bool = True) -> str:
    """The whole page, of at least one matrix. `figures` lie beside it and are linked; without `images` it shows no
    pictures of patients.

    Raises as `protocols.judge`.
    """
    rows = [(label, run) for label, run, _ in matrices[0].rows]
    data = gallery(rows, sweep.sets, [matrix.protocol for matrix in matrices], images=images)
    script = _asset("page.js")
    shown = [part for part in _sections(sweep, matrices, rows, data) if part[2]]
    contents = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in shown)
    whole = Template(_asset("page.html")).substitute(
        title=html(f"{sweep.name}: results"),
        style=_asset("page.css"),
        header=_header(sweep, matrices),
        switch=_switch(matrices),
        contents=f"<ul>{contents}</ul>",
        sections="\n".join(
            f'<section id="{name}" aria-labelledby="of-{name}"><h2 id="of-{name}">{title}</h2>\n{part}\n</section>'
            for name, title, part in shown
        ),
        footer=_footer(figures),
        data=as_script(data),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    return whole.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair in an answer cannot be written


def as_script(value: Any) -> str:
    """JSON that nothing in it can end early, as the text of a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")  # ASCII, so also without U+2028


def _sections(sweep: Sweep, matrices: Sequence[Matrix], rows: sections.Rows, data: dict[str, Any]) -> Iterator[Section]:
    answered = {(int(run), question["set"]) for question in data["questions"] for run in question["answers"]}
    places = {(data["runs"][run]["name"], data["sets"][name]): (run, name) for run, name in answered}
    yield "results", "Results", heat(matrices, places)
    yield "unfinished", "Not finished", sections.failures(sweep)
    yield "transfer", "In domain and transfer", sections.transfer(matrices)
    yield "comparisons", "Against the base model", sections.comparisons(matrices)
    yield "seeds", "Seeds", sections.seeds(matrices)
    yield "smallest", "Smallest difference that shows", sections.smallest_differences(matrices)
    yield "floors", "Without looking", sections.floors(matrices)
    yield "breakdowns", "Breakdowns", breakdowns(matrices)
    yield "leakage", "Leakage", sections.leakage(sweep)
    yield "curves", "Training", curves(rows)
    yield "settings", "Settings that differ", sections.settings(sweep, rows)
    yield "runs", "Runs", sections.runs(rows)
    yield "gallery", "Questions and answers", _gallery(data)


def _header(sweep: Sweep, matrices: Sequence[Matrix]) -> str:
    found = counts(sweep)
    entries = (entry for run in sweep.runs for entry in run.evaluations.values())
    versions = dict.fromkeys(str(entry["scorer_version"]) for entry in entries if "scorer_version" in entry)
    facts: dict[str, object] = {}
    if command := sweep.plan.get("command"):
        facts["Command"] = Markup(f"<code>{html(' '.join(map(str, command)))}</code>")
    if created := sweep.plan.get("created"):
        facts["Started"] = created
    facts["Runs"] = ", ".join(f"{found[state]} {state}" for state in STATES if found.get(state)) or "none"
    facts["Sets"] = ", ".join(sweep.sets) or "none"
    for matrix in matrices:
        about = PROTOCOLS[matrix.protocol].about if matrix.protocol in PROTOCOLS else "no longer known"
        facts[f"Protocol {matrix.protocol}"] = about
    if versions:
        facts["Scorer version"] = ", ".join(versions)
    lines = "\n".join(f"<dt>{html(name)}</dt><dd>{html(value)}</dd>" for name, value in facts.items())
    return f"<h1>{html(sweep.name)}</h1>\n<dl>\n{lines}\n</dl>"


def _switch(matrices: Sequence[Matrix]) -> str:
    if len(matrices) < 2:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="protocol" value="{html(matrix.protocol)}"{"" if place else " checked"}>'
        f"{html(matrix.protocol)}</label>"
        for place, matrix in enumerate(matrices)
    )
    return f"<fieldset><legend>Protocol</legend>{choices}</fieldset>"


def _gallery(data: dict[str, Any]) -> Markup:
    if not data["questions"]:
        return Markup("")
    drawn = [sum(question["set"] == place for question in data["questions"]) for place in range(len(data["sets"]))]
    sample = ", ".join(
        f"{count} of {data['asked'][name]:,} of {name}"
        for name, count in zip(data["sets"], drawn, strict=True)
        if count
    )
    note = f"A sample, drawn once and the same for every run: {sample}. "
    if data["scored_runs"] > RUNS:
        note += f"It shows {RUNS} of the {data['scored_runs']} runs that have scores, spread evenly over the matrix. "
    note += "An answer stands as it was read; in italics, with the reply, why none could be. "
    note += f"Pictures are at most {EDGE} pixels wide and high." if data["images"] else "Pictures are left out."
    kinds = sorted({question["type"] for question in data["questions"]})
    verdicts = {"right": "right", "wrong": "wrong", "unparsed": "unparsed", "differ": "runs disagree"}
    filters = (
        _choice("by-set", "Set", "all sets", dict(enumerate(data["sets"])))
        + _choice("by-run", "Run", "all runs", {place: run["label"] for place, run in enumerate(data["runs"])})
        + _choice("by-verdict", "Verdict of any run shown", "any", verdicts)
        + _choice("by-type", "Answer type", "all types", {kind: kind for kind in kinds})
        + '<label>Search<input type="search" id="by-text" placeholder="question or answer"></label>'
    )
    return Markup(
        f'{paragraph(note, "note")}<div class="filters" role="search" aria-label="Filter the questions">{filters}</div>'
        '<div class="pages"><strong id="count" role="status" aria-live="polite"></strong>'
        '<button type="button" id="before">Previous</button><button type="button" id="after">Next</button>'
        '<span id="page"></span></div>'
        '<ol id="cards"><li>The questions are shown with JavaScript.</li></ol>'
    )


def _choice(name: str, title: str, every: str, options: dict[Any, str]) -> str:
    listed = "".join(f'<option value="{html(value)}">{html(text)}</option>' for value, text in options.items())
    return f'<label>{title}<select id="{name}"><option value="">{every}</option>{listed}</select></label>'


def _footer(figures: Sequence[Path]) -> str:
    notes = paragraph(
        "Shares are in percent with their 95 % interval, over questions drawn by image. An answer that could not be "
        "read counts as wrong. The page holds everything it shows and asks no other machine for anything."
    )
    links = ", ".join(f'<a href="{html(file.name)}">{html(file.name)}</a>' for file in figures)
    return notes + (paragraph(Markup(f"Beside this page, for a paper: {links}")) if links else "")


def _asset(name: str) -> str:
    return resources.files("vlmft.report").joinpath(name).read_text(encoding="utf-8")

"""`index.html` of a check: its splits, what was found row by row, and sample rows with what is trained in colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from string import Template
from typing import Any

from vlmft.check.findings import LEVELS
from vlmft.report.gallery import thumbnail
from vlmft.report.markup import Markup, fold, html, paragraph, table

ROWS = 50  # of a finding; check.json has more of them

Part = Mapping[str, Any]


def page(result: Mapping[str, Any]) -> str:
    """The whole page; it needs no other file."""
    parts = result["parts"]
    counts = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in _counts(parts).items())
    title = f"{result['model']}: {', '.join(part['name'] for part in parts)}"
    sections = [_section("Splits", _splits(parts)), _section("Found", _found(parts))]
    sections += [_section(f"Rows of {part['name']}", _samples(part)) for part in parts if part["samples"]]
    style = resources.files("vlmft.report").joinpath("page.css").read_text(encoding="utf-8")
    template = resources.files("vlmft.check").joinpath("page.html").read_text(encoding="utf-8")
    whole = Template(template).substitute(
        title=html(title),
        style=style,
        header=f"<h1>{html(title)}</h1>{paragraph(counts)}",
        sections="\n".join(sections),
    )
    return whole.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair in an answer cannot be written


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{html(title)}</h2>\n{inner}\n</section>"


def _counts(parts: Iterable[Part]) -> dict[str, int]:
    levels = [found["level"] for part in parts for found in part["findings"]]
    return {level: levels.count(level) for level in LEVELS}


def _splits(parts: Iterable[Part]) -> str:
    rows = []
    for part in parts:
        spread, visual = part["tokens"].get("row", {}), part["tokens"].get("visual", {})
        numbers = [f"{spread.get(name, 0):,.0f}" for name in ("least", "median", "p95", "most")]
        rows.append(
            [part["name"], f"{part['questions']:,}", f"{part['images']:,}", *numbers, f"{visual.get('median', 0):,.0f}"]
        )
    headings = ["split", "questions", "images", "tokens: least", "median", "95 %", "most", "visual: median"]
    answers = [
        [part["name"], kind, answer, f"{count:,}", f"{100 * count / sum(of.values()):.1f} %"]
        for part in parts
        for kind, of in part["balance"].items()
        for answer, count in list(of.items())[:5]
    ]
    return table(headings, rows) + table(
        ["split", "form", "answer", "rows", "share"], answers, words=3, caption="The commonest closed answers"
    )


def _found(parts: Iterable[Part]) -> str:
    said = []
    for level in LEVELS:
        for part in parts:
            for found in part["findings"]:
                if found["level"] != level:
                    continue
                count = f": {found['count']:,}" if found["rows"] else ""
                head = Markup(f"<b>{level}</b> {html(part['name'])}: {html(found['what'] + count)}")
                rows = "".join(f"<li>{html(row)}</li>" for row in found["rows"][:ROWS])
                said.append(fold(head, f"<ul>{rows}</ul>") if rows else paragraph(head))
    return "\n".join(said) or paragraph("Nothing that should be known.")


def _samples(part: Part) -> str:
    note = paragraph(
        Markup(
            'What the model reads; <span class="trained">in colour</span> what it is trained to say, '
            '<span class="rejected">struck through</span> what of a pair it is to say less often.'
        )
        if part["use"] != "test"
        else "What the model reads before it answers."
    )
    return note + "\n".join(_sample(sample) for sample in part["samples"])


def _sample(sample: Mapping[str, Any]) -> str:
    pictures = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{data}">' if data else paragraph("(cannot be shown)")
        for data in map(thumbnail, sample["images"])
    )
    text = "".join(f'<span class="{piece["kind"]}">{html(piece["text"])}</span>' for piece in sample["pieces"])
    heading = f"<h3>{html(sample['row'])}, {sample['tokens']:,} tokens</h3>"
    return f'<div class="row">{heading}<div>{pictures}</div><pre>{text}</pre></div>'

"""Tables and numbers of the page as HTML. Text is escaped on its way in, unless it is `Markup` already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from vlmft.evaluation.table import is_share

LONG = 25  # rows; a longer table is folded
NOTHING = "–"


class Markup(str):
    """Text that is HTML already."""


def html(text: object) -> Markup:
    return text if isinstance(text, Markup) else Markup(escape(str(text)))


def paragraph(text: object, kind: str = "") -> Markup:
    return Markup(f'<p class="{kind}">{html(text)}</p>' if kind else f"<p>{html(text)}</p>")


def table(
    headings: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    words: int = 1,
    caption: str = "",
    once: Sequence[str] = (),
) -> Markup:
    """A table that scrolls on its own; the columns after the first `words` hold numbers. "" where there are no rows.

    A column of `once` that says the same in every row is said in the caption instead. A long table is folded.
    """
    names, cells = list(headings), [list(row) for row in rows]
    for name in once:
        place = names.index(name)
        if len(same := {row[place] for row in cells}) == 1:
            caption = "; ".join(filter(None, (caption, f"{name}: {same.pop()}")))
            words -= 1
            for line in (names, *cells):
                del line[place]
    lines = []
    for first, *others in cells:
        texts = "".join(f"<td>{html(value)}</td>" for value in others[: words - 1])
        numbers = "".join(f'<td class="n">{html(value)}</td>' for value in others[words - 1 :])
        lines.append(f'<tr><th scope="row">{html(first)}</th>{texts}{numbers}</tr>')
    if not lines:
        return Markup("")
    tops = "".join(
        f'<th scope="col"{"" if place < words else " class=n"}>{html(heading)}</th>'
        for place, heading in enumerate(names)
    )
    said = f"<caption>{html(caption)}</caption>" if caption else ""
    whole = wide(
        f"<table>{said}<thead><tr>{tops}</tr></thead><tbody>\n" + "\n".join(lines) + "</tbody></table>", caption
    )
    return fold(f"All {len(lines):,} rows", whole) if len(lines) > LONG else whole


def wide(inner: str, name: str = "") -> Markup:
    """A box that scrolls sideways, also with the keyboard."""
    return Markup(f'<div class="wide" tabindex="0" role="region" aria-label="{html(name or "Table")}">{inner}</div>')


def fold(summary: object, inner: str) -> Markup:
    return Markup(f"<details><summary>{html(summary)}</summary>{inner}</details>")


def per_protocol(parts: Mapping[str, str]) -> Markup:
    """A block for each protocol, of which the reader's switch shows one."""
    blocks = (
        f'<div data-protocol="{html(name)}"{" hidden" if place else ""}>{part}</div>'
        for place, (name, part) in enumerate(parts.items())
    )
    return Markup("\n".join(blocks))


def metric_name(metric: str) -> str:
    return metric.replace("_", " ")


def points(value: float | None, metric: str) -> str:
    """A difference with its sign."""
    if value is None:
        return NOTHING
    return (f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.2f}").replace("-", "−")


def p_value(p: float | None) -> str:
    if p is None:
        return NOTHING
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"

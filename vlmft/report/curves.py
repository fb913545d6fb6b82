"""Training curves as small drawings in the page, all on one scale of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from vlmft.report.markup import Markup, html, paragraph
from vlmft.report.scan import Run

WIDTH, HEIGHT = 240, 120
LEFT, BELOW = 26, 16
POINTS = 150  # drawn of one curve
AVERAGED = 0.05  # of a run's points, in a moving average

Curve = list[tuple[float, float]]  # step, loss


def curves(rows: Sequence[tuple[str, Run]]) -> Markup:
    """A drawing for every run that logged a loss; "" where none did."""
    drawn = [(label, run, _curve(run, "loss"), _curve(run, "eval_loss")) for label, run in rows]
    drawn = [one for one in drawn if one[2]]
    if not drawn:
        return Markup("")
    top = max(loss for _, _, raw, held_out in drawn for _, loss in (*moving_average(raw), *held_out)) or 1.0
    note = "Loss by step on one scale: grey as logged, the line its moving average, dashed the loss on held-out rows."
    figures = "\n".join(_figure(label, run, raw, held_out, top) for label, run, raw, held_out in drawn)
    return Markup(f'{paragraph(note, "note")}<div class="curves">\n{figures}</div>')


def moving_average(curve: Curve) -> Curve:
    """Each point the mean of itself and those before it, over a twentieth of the curve."""
    window = max(1, round(AVERAGED * len(curve)))
    found, total = [], 0.0
    for place, (step, loss) in enumerate(curve):
        total += loss - (curve[place - window][1] if place >= window else 0.0)
        found.append((step, total / min(window, place + 1)))
    return found


def _curve(run: Run, name: str) -> Curve:
    """The finite values by step; of a step that a resumed run logged again the later one."""
    found: dict[float, float] = {}
    for line in run.history:
        value: Any = line.get(name)
        if isinstance(value, (int, float)) and isfinite(value):
            found[line["step"]] = value
    return sorted(found.items())


def _figure(label: str, run: Run, raw: Curve, held_out: Curve, top: float) -> str:
    last = max(raw[-1][0], 1)
    mean = moving_average(raw)

    def path(curve: Curve, kind: str) -> str:
        if not curve:
            return ""
        thinned = curve[:: -(-len(curve) // POINTS)]
        thinned = thinned if thinned[-1] == curve[-1] else [*thinned, curve[-1]]
        ends = (
            f"{LEFT + (WIDTH - LEFT) * step / last:.1f},{(HEIGHT - BELOW) * (1 - min(loss, top) / top):.1f}"
            for step, loss in thinned
        )
        return f'<polyline class="{kind}" points="{" ".join(ends)}"/>'

    floor = HEIGHT - BELOW
    said = f"loss {mean[-1][1]:.3f} after {last:,.0f} steps"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html(f"{label}: {said}")}">'
        f'<path class="axis" d="M{LEFT},0V{floor}H{WIDTH}"/>'
        f'<text x="{LEFT - 4}" y="8" text-anchor="end">{top:.2g}</text>'
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">step {last:,.0f}</text>'
        f"{path(raw, 'raw')}{path(mean, 'mean')}{path(held_out, 'eval')}</svg>"
        f'<figcaption>{html(label)}<br><span class="note">{said}, {html(run.state)}</span></figcaption></figure>'
    )

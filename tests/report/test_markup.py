"""The page's pieces: tables, numbers and training curves."""

from __future__ import annotations

import json
from pathlib import Path

from vlmft.report.curves import curves, moving_average
from vlmft.report.markup import LONG, Markup, p_value, points, table
from vlmft.report.scan import Run


def test_a_table_says_once_what_every_row_says() -> None:
    rows = [("a", "accuracy", "1"), ("b", "accuracy", "<2>")]
    drawn = table(("run", "metric", "n"), rows, words=2, once=("metric",))
    assert "<caption>metric: accuracy</caption>" in drawn and ">metric</th>" not in drawn
    assert '<th scope="row">b</th><td class="n">&lt;2&gt;</td>' in drawn
    apart = table(("run", "metric", "n"), [*rows, ("c", "f1", "3")], words=2, once=("metric",))
    assert "<td>accuracy</td>" in apart and "<caption>" not in apart
    assert table(("run",), []) == ""


def test_a_long_table_is_folded() -> None:
    rows = [("a", Markup("<i>1</i>"))] * (LONG + 1)
    assert table(("run", "n"), rows).startswith(f"<details><summary>All {LONG + 1} rows</summary>")
    assert table(("run", "n"), rows[1:]).startswith("<div")


def test_curves_take_the_later_of_two_logs_of_a_step(tmp_path: Path) -> None:
    lines = [(5, 2.0), (10, 9.0), (10, 1.0), (15, float("nan")), (20, 0.5)]
    text = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in lines)
    (tmp_path / "history.jsonl").write_text(text, encoding="utf-8")
    drawn = curves([("<i>", Run(tmp_path, {}, {}, {"state": "done"}))])
    assert "loss 0.500 after 20 steps, done" in drawn and "<i>" not in drawn
    assert curves([("empty", Run(tmp_path / "none", {}, {}, {}))]) == ""


def test_moving_average_is_of_a_twentieth() -> None:
    averaged = moving_average([(step, float(step)) for step in range(100)])
    assert averaged[0] == (0, 0) and averaged[99] == (99, 97) and len(averaged) == 100


def test_differences_have_a_sign_and_their_own_unit() -> None:
    assert points(-0.0512, "accuracy") == "−5.1"
    assert points(0.25, "mae") == "+0.25"
    assert points(None, "accuracy") == "–"


def test_small_p_values_are_bounds() -> None:
    assert (p_value(0.0001), p_value(0.012), p_value(None)) == ("< 0.001", "0.012", "–")

"""The small table at the end of a command: scores of each set, with the floor beside them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(result: dict[str, Any]) -> None:
    """Print what training took and, per set and protocol, the shares right; nothing of what is not there."""
    if train := result["train"]:
        loss = "" if train["loss"] is None else f", last loss {train['loss']:.4f}"
        print(
            f"trained   {train['steps']:,} steps, {train['questions']:,} questions in {train['seconds']:.0f} s "
            f"({train['questions_per_second'] or 0:.0f} questions/s){loss}"
        )
    if not result["evaluations"]:
        return
    table = Table(box=None, pad_edge=False, title=result["run"], title_justify="left")
    table.add_column("set")
    table.add_column("protocol")
    for name in ("n", "accuracy", "closed", "open EM", "open F1", "unparsed", "floor"):
        table.add_column(name, justify="right")
    for name, found in result["evaluations"].items():
        for protocol, scores in found["scores"].items():
            floor = (found.get("floor") or {}).get("question_only", {}).get("accuracy")
            table.add_row(
                name, protocol, f"{found['n']:,}", _share(scores["accuracy"]), _share(scores["closed"]["accuracy"]),
                _share(scores["open"]["exact_match"]), _share(scores["open"]["f1"]), _share(found["unparsed_rate"]),
                _share(floor) if protocol == "normalized" else "",
            )  # fmt: skip
    console = Console()
    console = Console(width=max(100, console.width))  # a pipe is taken for 80 columns, which cuts the headings
    console.print(table)
    if any(found.get("floor") for found in result["evaluations"].values()):
        print("floor: what the question alone gives away (the most common training answer to it)")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"

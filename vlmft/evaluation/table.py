"""What a command prints at its end: the scores of each set with their intervals and floors, and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmft.evaluation import judge as judges
from vlmft.evaluation.ablations import PASSES, shows_other_pictures
from vlmft.evaluation.answer_kinds import OK
from vlmft.evaluation.floors import QUESTION_ONLY
from vlmft.evaluation.protocols import judge
from vlmft.evaluation.task_metrics import LOWER_IS_BETTER
from vlmft.history import ranked

if TYPE_CHECKING:
    from rich.table import Table

MANY_UNPARSED = 0.02  # from here on it is said: such a score measures the output's form as well
_COLUMNS = {  # metric → heading; one that no set has is left out
    "closed_accuracy": "closed",
    "open_exact_match": "open EM",
    "open_f1": "open F1",
    "open_recall": "open recall",
    "accuracy_terms": "terms",
    "parse_rate": "parsed",
}


def print_table(result: dict[str, Any]) -> None:
    """Print what training took and, per set and protocol, the scores; nothing of what is not there."""
    if train := result["train"]:
        loss = "" if train["loss"] is None else f", last loss {train['loss']:.4f}{ranked(train)}"
        print(
            f"trained   {train['steps']:,} steps, {train['questions']:,} questions in {train['seconds']:.0f} s "
            f"({train['questions_per_second'] or 0:.0f} questions/s){loss}"
        )
    if result["evaluations"]:
        print_scores(result["run"], result["evaluations"])


def print_scores(title: str, evaluations: dict[str, Any]) -> None:
    """Print the scores of each set and protocol, and below what has to be known to read them."""
    sets = {name: found for name, found in evaluations.items() if not shows_other_pictures(name)}
    lines = [(name, found, protocol) for name, found in sets.items() for protocol in found["scores"]]
    metrics = [m for m in _COLUMNS if any(m in found["scores"][protocol]["metrics"] for _, found, protocol in lines)]
    passes = [kind for kind in PASSES if any(f"{name}.{kind}" in evaluations for name in sets)]
    table = _table(title)
    table.add_column("set")
    table.add_column("protocol")
    for heading in ("n", "", "95 %", *(_COLUMNS[metric] for metric in metrics), "unparsed", "floor", *passes):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found, protocol in lines:
        scores = found["scores"][protocol]
        head = scores["headline"]
        without = [evaluations.get(f"{name}.{kind}", {}).get("scores", {}).get(protocol) for kind in passes]
        table.add_row(
            name,
            protocol,
            f"{found['n']:,}",
            f"{head.replace('_', ' ')} {number(scores['metrics'].get(head, {}).get('value'), head)}",
            _interval(scores["metrics"].get(head, {}), head),
            *(number(scores["metrics"].get(metric, {}).get("value"), metric) for metric in metrics),
            number(scores["unparsed_rate"], ""),
            number(found["floor"].get(QUESTION_ONLY, {}).get(protocol, {}).get(head), head),
            *(number(other["metrics"].get(head, {}).get("value") if other else None, head) for other in without),
        )
    _print(table)
    for line in _remarks(sets, evaluations):
        print(line)


def print_matches(name: str, records: Sequence[Mapping[str, Any]], protocol: str) -> None:
    """Print these comparisons of a set: what was said, what was understood, the gold, and the verdict."""
    print(f"{name}, {protocol}: raw | understood | gold | verdict")
    for record in records:
        verdict = judge(record, protocol)
        understood = "–" if verdict.parsed is None else repr(verdict.parsed)
        outcome = "right" if verdict.correct else "wrong" if verdict.status == OK else f"wrong ({verdict.status})"
        print(f"  {record['raw']!r} | {understood} | {record['gold']!r} | {outcome}")


def print_comparisons(rows: Sequence[Mapping[str, Any]], protocol: str) -> None:
    """Print each comparison of two runs on one set (`comparison.compare` with set, first, second and p_holm)."""
    table = _table(f"second minus first, {protocol}")
    for heading in ("set", "first", "second", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("n", "difference", "p", "p (Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["set"], row["first"], row["second"], row["metric"].replace("_", " "), f"{row['n']:,}", _points(row),
            _p(row["p"]), _p(row["p_holm"]),
        )  # fmt: skip
    _print(table)
    print(f"p: {rows[0]['test']}; Holm over these {len(rows)}; differences with a paired bootstrap over images, 95 %")


def _remarks(sets: dict[str, Any], evaluations: dict[str, Any]) -> Iterable[str]:
    if any(found["floor"].get(QUESTION_ONLY) for found in sets.values()):
        yield "floor: what the question alone gives away (the most common training answer to it)"
    for name, found in sets.items():
        points = 100 * found["smallest_difference"]
        if "." in name:
            yield f"{name}: rows of the split {name.partition('.')[2]}, for vlmft pairs; they stand in no report"
        elif points > 100:
            yield f"{name}: {found['n']} questions are too few to tell two models apart"
        else:
            yield (
                f"{name}: two models have to differ by {points:.1f} points to be told apart "
                "(80 % power, 15 % discordant)"
            )
        rate = max(scores["unparsed_rate"] for scores in found["scores"].values())
        if rate > MANY_UNPARSED:
            yield f"{name}: {100 * rate:.1f} % of the answers could not be read and count as wrong"
        yield from judges.lines(name, found)
        for trained, counts in found.get("leakage", {}).items():
            if counts["same_image"]:
                protocol, scores = next(iter(found["scores"].items()))
                rest = scores["without_duplicates"]
                apart = (
                    f"; without the {counts['same_pair']} duplicate rows {scores['headline'].replace('_', ' ')} "
                    f"{number(rest['value'], scores['headline'])} ({protocol})"
                    if rest
                    else ""
                )
                yield (
                    f"{name}: {counts['same_image']} of its {counts['images']} images are also trained on "
                    f"(with {trained}){apart}"
                )
    for name, found in evaluations.items():
        for protocol, change in list(found.get("difference", {}).items())[:1]:
            yield (
                f"{name.replace('.', ', ')}: the pictures are worth {_points(change)} ({protocol}, "
                f"p {_p(change['p'])}, {change['test']})"
            )


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, title=title, title_justify="left")


def _print(table: Table) -> None:
    from rich.console import Console

    Console(width=max(140, Console().width)).print(table)  # a pipe is taken for 80 columns, which cuts the headings


def _points(change: Mapping[str, Any]) -> str:
    scale, unit = (1, "") if change["metric"] in LOWER_IS_BETTER else (100, " points")
    numbers = (change[key] for key in ("difference", "low", "high"))
    difference, low, high = ("–" if number is None else f"{scale * number:+.1f}" for number in numbers)
    return f"{difference}{unit} [{low}, {high}]"


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def _interval(metric: dict[str, Any], name: str) -> str:
    if metric.get("low") is None:
        return "–"
    return f"[{number(metric['low'], name)}, {number(metric['high'], name)}]"


def number(value: float | None, metric: str) -> str:
    """A share in percent, an error in its own unit; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.2f}"


def is_share(metric: str) -> bool:
    """Whether a metric is told in percent, and more is better."""
    return metric not in LOWER_IS_BETTER and not metric.endswith("words")

"""`vlmft report | status | rescore | compare | score | ask | export | pairs`: what is done with runs, or sets."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from vlmft.data.load import load
from vlmft.errors import ConfigError, DataError, RunFailed, tell
from vlmft.evaluation import floors, outside_predictions, results, statistics
from vlmft.evaluation.comparison import compare
from vlmft.evaluation.predictions import generation_of, predicted_sets, predictions_file, read_predictions
from vlmft.evaluation.protocols import PROTOCOLS
from vlmft.evaluation.scores import score
from vlmft.evaluation.table import print_comparisons, print_matches, print_scores, print_table
from vlmft.lock import Locked, RunLock
from vlmft.schema import BadRows, Eval, QuestionSet
from vlmft.use.commands import (
    ask,
    ask_options,
    data_options,
    export_data,
    export_model,
    export_options,
    pairs,
    pairs_options,
)

DEFAULT = Eval().protocols


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the arguments ask for. What is wrong is told on stderr, and the exit code is then 1."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ConfigError, DataError, RunFailed) as error:
        tell(error)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlmft", description="What runs have come to; train.py makes them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    protocols = "; ".join(f"{name}: {protocol.about}" for name, protocol in PROTOCOLS.items())

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(command=run)
        added.add_argument(
            "--protocol", action="append", choices=list(PROTOCOLS), metavar="P",
            help=f"once or more, of {', '.join(PROTOCOLS)} (default: {' and '.join(DEFAULT)}). {protocols}",
        )  # fmt: skip
        return added

    page = commands.add_parser("report", help="make the report of a sweep, or of any runs", description=_report.__doc__)
    page.set_defaults(command=_report)
    page.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a sweep's folder, run directories, outputs")
    page.add_argument("--out", type=Path, metavar="FOLDER", help="default: multirun_reports/<name of the first path>")
    page.add_argument("--no-images", action="store_true", help="leave the pictures of the questions out of the page")
    live = commands.add_parser("status", help="what runs are doing", description=_status.__doc__)
    live.set_defaults(command=_status)
    live.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a sweep's folder, run directories (outputs)")
    live.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    live.add_argument("--refresh", type=float, default=10, metavar="SECONDS")
    live.add_argument("--tail", type=int, default=0, metavar="N", help="also the last N lines of the logs")
    again = command("rescore", _rescore, "score the stored predictions of runs again, and rebuild their result.json")
    again.add_argument("runs", nargs="+", type=_folder, metavar="RUN_DIR")
    _matches(again)
    several = command("compare", _compare, "test every two runs against each other on the questions both answer")
    several.add_argument("runs", nargs="+", type=_folder, metavar="RUN_DIR")
    outside = command("score", _score, "score predictions that were made elsewhere against a publisher's questions")
    outside.add_argument("--questions", required=True, metavar="PATH", help="the publisher's folder")
    outside.add_argument("--format", required=True, help="slake, vqa_rad, pathvqa, conversations, …")
    outside.add_argument("--predictions", required=True, type=Path, metavar="FILE.jsonl",
                         help="rows with question_id or id (or image and question) and text or prediction")  # fmt: skip
    outside.add_argument("--split", default="test")
    outside.add_argument("--language", help="only the questions of one language (en, zh)")
    outside.add_argument("--drop-bad-rows", action="store_true", help="leave out questions that cannot be used")
    outside.add_argument("--json", action="store_true", help="print one object of result.json's form, and nothing else")
    _matches(outside)
    talk = commands.add_parser("ask", help="ask a trained model", description=ask.__doc__)
    talk.set_defaults(command=ask)
    ask_options(talk)
    about = "a trained model as one folder, or a set's questions in the chat form"
    out = commands.add_parser("export", help=about, description=_export.__doc__)
    out.set_defaults(command=_export)
    out.add_argument("arguments", nargs="*", metavar="RUN_DIR | KEY=VALUE",
                     help="a run directory or adapter folder; with --data, keys as for train.py: seed=1")  # fmt: skip
    out.add_argument("--data", nargs="?", const="", metavar="SET", help="a set of train.py's dataset=…; needs no run")
    out.add_argument("--out", type=_folder, metavar="FOLDER", help="a new folder (of a run: RUN_DIR/export)")
    export_options(out.add_argument_group("with RUN_DIR"))
    data_options(out.add_argument_group("with --data"))
    about = "the wrong answers of a run as preference rows, for method=dpo"
    rejects = commands.add_parser("pairs", help=about, description=pairs.__doc__)
    rejects.set_defaults(command=pairs)
    pairs_options(rejects, DEFAULT[0], PROTOCOLS)
    return parser


def _export(options: argparse.Namespace) -> None:
    """The trained model of RUN_DIR as one folder that transformers loads, with a model card, read back and compared.

    With --data: the questions of a set in the chat form, for other trainers; dataset=conversations reads it again.
    """
    if options.data is None and options.validate is None:
        export_model(options)
        return
    if options.push or options.dtype:
        raise ConfigError("export: --push and --dtype are of a RUN_DIR; leave them out of --data")
    export_data(options)


def _report(options: argparse.Namespace) -> None:
    """One page with matrix, intervals, comparisons, breakdowns and pictures, and its tables as files."""
    from vlmft.report.build import build
    from vlmft.report.scan import runs_below, sweep
    from vlmft.sweep import PLAN, REPORTS

    planned = len(options.paths) == 1 and (options.paths[0] / PLAN).is_file()
    found = sweep(options.paths[0]) if planned else runs_below(options.paths)
    folder = options.out or (options.paths[0] if planned else REPORTS / found.name)
    for file in build(found, folder, images=not options.no_images):
        print(f"written   {file}")
    print(found.describe())


def _status(options: argparse.Namespace) -> None:
    """State, progress, time left, loss and its history of each run; GPUs and Slurm jobs where there are any."""
    from vlmft.watch import status_command

    status_command(options.paths, watch=options.watch, refresh=options.refresh, tail=options.tail)


def _folder(text: str) -> Path:
    return Path(text).resolve()  # a run's folder has its name, and "." has none


def _matches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug-matches", type=int, default=0, metavar="N", help="print the first N comparisons")


def _rescore(options: argparse.Namespace) -> None:
    protocols = options.protocol or DEFAULT
    runs = [(run, _predicted(run)) for run in options.runs]  # before anything is written
    for run, names in runs:
        try:
            with RunLock(run.parent, run.name):
                for name in names:
                    generation = generation_of(predictions_file(run, name))
                    results.score_set(run, name, protocols, generation or "")
        except Locked as held:
            raise RunFailed(f"{run}: {held}") from held
        except ValueError as error:
            raise DataError(f"{run}, {name}: {error}") from error
        result = results.read(run)
        print_table(result)
        for name in names if options.debug_matches else []:
            shown = read_predictions(predictions_file(run, name))[: options.debug_matches]
            print_matches(name, shown, protocols[0])
        print(f"written   {run / 'result.json'}")


def _predicted(run: Path) -> list[str]:
    names = predicted_sets(run)
    if not names:
        raise DataError(f"{run}: there are no predictions_<set>.jsonl; name run directories, such as outputs/…")
    return sorted(names, key=lambda name: ("." in name, name))  # a pass is compared with its set


def _compare(options: argparse.Namespace) -> None:
    if len(options.runs) < 2:
        raise ConfigError("compare: name at least two run directories")
    names = {run: [name for name in _predicted(run) if "." not in name] for run in options.runs}
    protocol = (options.protocol or DEFAULT)[0]
    found = []
    for first, second in combinations(options.runs, 2):
        for name in names[first]:
            if name in names[second]:
                one, other = (read_predictions(predictions_file(run, name)) for run in (first, second))
                named = {"set": name, "first": first.name, "second": second.name}
                try:
                    found.append(named | compare(one, other, protocol))
                except ValueError as error:
                    raise DataError(f"compare: {first.name} and {second.name} on {name}: {error}") from error
    if not found:
        raise DataError("compare: no two of these runs have predictions on the same set")
    for row, adjusted in zip(found, statistics.holm([row["p"] for row in found]), strict=True):
        row["p_holm"] = adjusted
    print_comparisons(found, protocol)


def _score(options: argparse.Namespace) -> None:
    spec = QuestionSet(
        name=options.format, format=options.format, path=options.questions, language=options.language,
        bad_rows=BadRows.drop if options.drop_bad_rows else BadRows.refuse,
    )  # fmt: skip
    questions = load(spec, options.split, need_images=False).questions
    joined = outside_predictions.join(questions, options.predictions)
    try:
        train = load(spec, "train", drop_bad_rows=True, need_images=False).questions if options.split != "train" else []
    except DataError:
        train = []
    notes = floors.learnt(train, questions)
    records = [record | {"train": note} for record, note in zip(joined.records, notes, strict=True)]
    protocols = options.protocol or DEFAULT
    try:
        entry = score(records, protocols) | {"missing": len(joined.missing), "unjoined": len(joined.unjoined)}
    except ValueError as error:
        raise DataError(f"{spec.name}: {error}") from error
    if options.json:
        print(json.dumps(entry, ensure_ascii=False))
        return
    print_scores(str(options.predictions), {spec.name: entry})
    for line in joined.unjoined[:10]:
        print(f"not joined: {line}", file=sys.stderr)
    if joined.unjoined or joined.missing:
        print(
            f"{len(joined.unjoined)} predictions joined no question; {len(joined.missing)} of {len(questions)} "
            "questions have no prediction and count as wrong"
        )
    if options.debug_matches:
        print_matches(spec.name, records[: options.debug_matches], protocols[0])

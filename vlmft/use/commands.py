"""`vlmft ask`, `vlmft export` and `vlmft pairs`: their options, and what they do in turn."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmft.errors import ConfigError
from vlmft.schema import AnswerStyle, Device

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def ask_options(parser: Any) -> None:
    """Add the options of `vlmft ask`."""
    parser.add_argument("folder", type=_folder, metavar="RUN_DIR", help="a run directory, adapter or model folder")
    parser.add_argument("--question", metavar="TEXT", help="without it, lines are questions until Ctrl-D")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="of the question, once or more")
    parser.add_argument("--demo", action="store_true", help="some questions of its own test sets, with their answers")
    parser.add_argument("--thoughts", action="store_true", help="show what it thinks before it answers")
    parser.add_argument("--raw", action="store_true", help="print replies as they are, with their tags")
    _device_and_model(parser)
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: as the run is evaluated")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="above 0: draw the tokens (default: the likeliest)"
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that make up this share"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing tokens, and of the questions of --demo")


def export_options(group: Any) -> None:
    """Add the options that `vlmft export` has of a run."""
    group.add_argument("--push", metavar="OWNER/NAME", help="also upload it to the Hugging Face Hub")
    group.add_argument("--private", action="store_true", help="a repository that --push makes is private")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the saved weights (default: of the base)")
    _device_and_model(group)


def data_options(group: Any) -> None:
    """Add the options that `vlmft export` has of a set."""
    from vlmft.data.exported import FORMS, MESSAGES

    group.add_argument("--split", action="append", metavar="SPLIT", help="once or more (default: train)")
    group.add_argument("--answer-style", default=AnswerStyle.answer.name, choices=[style.name for style in AnswerStyle])
    group.add_argument("--form", default=MESSAGES, choices=FORMS, help=f"a JSON file and images ({MESSAGES}), or "
                       "a folder of the library datasets")  # fmt: skip
    group.add_argument("--path", metavar="FOLDER", help="where the set lies (dataset.path)")
    group.add_argument("--language", help="only the questions of one language (en, zh)")
    group.add_argument("--max-rows", type=int, metavar="N", help="of each split at most N questions, in whole images")
    _absolute(group)
    group.add_argument("--validate", type=_folder, metavar="FOLDER", help="only look through what was exported")


def pairs_options(parser: Any, protocol: str, protocols: Iterable[str]) -> None:
    """Add the options of `vlmft pairs`; `protocol` is the default."""
    parser.add_argument("run", type=_folder, metavar="RUN_DIR")
    parser.add_argument("--set", metavar="NAME", help="of one set (default: of each that it has answered)")
    parser.add_argument("--split", default="train", help="which rows; never the test split (default: train)")
    parser.add_argument("--protocol", default=protocol, choices=list(protocols), help="says what is wrong "
                        f"(default: {protocol})")  # fmt: skip
    parser.add_argument("--out", type=_folder, metavar="FOLDER", help="with --set a new folder, else one with a folder "
                        "for each set (default: RUN_DIR/pairs)")  # fmt: skip
    _absolute(parser)


def _absolute(parser: Any) -> None:
    parser.add_argument("--absolute", action="store_true", help="name the pictures where they lie, and copy none")


def _device_and_model(parser: Any) -> None:
    parser.add_argument("--model", metavar="NAME", help="of conf/model: how a folder that no run made is asked")
    parser.add_argument("--device", choices=[device.name for device in Device], default=Device.auto.name)
    parser.add_argument("--split-model", action="store_true", help="over all GPUs, where it is too large for one")


def ask(options: argparse.Namespace) -> None:
    """One question, a conversation, or --demo. The answer goes to stdout, what is said about it to stderr."""
    from vlmft.models import split
    from vlmft.use import ask as asking
    from vlmft.use import trained

    if options.demo and (options.question is not None or options.image):
        raise ConfigError("ask: --demo asks the questions of a test set; leave out --question and --image")
    run, config = trained.config_of(options.folder, options.model)
    settings = asking.settings_of(config, options.max_new_tokens, options.temperature, options.top_p)
    pictures = [asking.picture(file) for file in options.image]
    if options.demo and not trained.own_sets(config):
        raise ConfigError(
            f"--demo: {options.folder} says of no set that it was trained or evaluated on; ask --question"
        )
    hardware = trained.hardware_of(Device[options.device], options.split_model)
    trained.use_device(hardware)
    model, encoder = trained.load(run, config, hardware)
    asking.note(f"model     {config.model.name} on {model.device.type}, {str(model.dtype).removeprefix('torch.')}")
    if options.split_model:
        asking.note(split.line(model))
    trained.seed(options.seed)
    if options.demo:
        asking.demo(model, encoder, config, settings, options.seed)
        return
    talk = asking.Conversation(model, encoder, settings)
    if options.question is None:
        asking.interact(talk, pictures, thoughts=options.thoughts, raw=options.raw)
    else:
        asking.tell(talk.ask(options.question, pictures), thoughts=options.thoughts, raw=options.raw)


def export_model(options: argparse.Namespace) -> None:
    """Merge, prove, write and, where asked, upload what a run trained. Raises ConfigError and DataError."""
    from vlmft.use import trained

    if len(options.arguments) != 1:
        raise ConfigError("export: name one RUN_DIR, or a set with --data SET")
    if options.push and not _REPOSITORY.fullmatch(options.push):
        raise ConfigError(f"--push {options.push}: it should be OWNER/NAME, as a repository of the Hub is named")
    if options.private and not options.push:
        raise ConfigError("--private is of the repository that --push makes; name that as well")
    folder = Path(options.arguments[0]).resolve()
    run, config = trained.config_of(folder, options.model)
    if not options.out and not (run / "config.yaml").is_file():
        raise ConfigError(f"export: {folder} is no run; name the new folder as well, --out FOLDER")
    out, hardware = options.out or run / "export", trained.hardware_of(Device[options.device], options.split_model)
    trained.use_device(hardware)
    from vlmft.use import export  # which imports torch

    named = options.push or (out.name if options.out else run.name)
    parity = export.export(run, config, out, hardware=hardware, dtype=options.dtype, named=named)
    print(f"same      {parity.describe()}")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"written   {out} ({size / 1e9:.3g} GB)")
    if options.push:
        print(f"pushed    {export.push(out, options.push, options.private)}")


def export_data(options: argparse.Namespace) -> None:
    """Write a set in the chat form, or look through what was written. Raises ConfigError and DataError."""
    from vlmft.data import export, exported

    if options.validate:
        for part in exported.validate(options.validate):
            print(f"in order  {part.describe()}")
        return
    if not options.data or not options.out:
        raise ConfigError("export: name the set and the new folder, --data slake --out FOLDER")
    config = export.choose(options.data, options.arguments, options.path, options.language)
    style, splits = AnswerStyle[options.answer_style], options.split or ["train"]
    for part in export.export(
        config, splits, options.out, style, form=options.form, absolute=options.absolute, most=options.max_rows
    ):
        print(f"written   {part.describe()}")
        if part.left_out:
            print(f"left out  {len(part.left_out):,} rows that cannot be used, the first: {part.left_out[0]}")


def pairs(options: argparse.Namespace) -> None:
    """What a run answered wrongly on rows that are no test rows, as preference rows: gold chosen, its own rejected.

    The run has to have answered them: python train.py task=eval runs=[RUN_DIR] eval.split=train.
    """
    from vlmft.use import pairs as making

    made = making.make(
        options.run, options.split, options.protocol, only=options.set, out=options.out, absolute=options.absolute
    )
    for one in made:
        if one.part:
            print(f"{'unchanged' if one.before else 'written':9} {one.part.describe()}")
        else:
            print(f"no pairs  {one.set}")
        if one.left_out:
            print(f"left out  {one.why_not()}")
        if one.remark:
            print(f"note      {one.remark}")
        if one.part:
            print(f"next      {making.next_command(options.run, one, options.absolute)}")


def _folder(text: str) -> Path:
    return Path(text).resolve()  # a run's folder has its name, and "." has none

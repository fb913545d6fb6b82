"""A check from the parent's side: the cheap part before a run, and `task=check` with its table, JSON and page."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlmft.check import findings
from vlmft.check.parts import TEST, Part, add_findings, read_parts, state
from vlmft.data.load import SHOWN
from vlmft.errors import DataError, RunFailed, how_it_died
from vlmft.fetch import model_folder, without_waiting
from vlmft.files import read_json
from vlmft.hardware import child_environment
from vlmft.identity import digest
from vlmft.models.tiny import RECIPE as TWINS
from vlmft.schema import Config, Device, Hardware

RECIPE = 1  # of what is looked for; raise it whenever a check would find something else
CHECKS = "checks"  # below paths.outputs
RESULT, PAGE = "check.json", "index.html"


def before_training(config: Config) -> None:
    """Look at rows and pictures, say in a line or two what is remarkable, and raise DataError for what is wrong.

    Pictures that were looked at before are not decoded again. No torch, and nothing of the model.
    """
    parts = read_parts(config)
    add_findings(parts)
    wrong = [(part, found) for part in parts for found in part.findings if found.level == findings.ERROR]
    if wrong:
        lines = (f"{part.name}: {_told(found.as_dict(), SHOWN)}" for part, found in wrong)
        rest = ", or leave rows out with dataset.bad_rows=drop" if all(part.total for part, _ in wrong) else ""
        raise DataError("\n".join([*lines, f"Put them right{rest}."]))
    rows = " and ".join(f"{_total(parts, test):,} {name}" for test, name in ((False, "training"), (True, "test")))
    odd = sum(found.count for part in parts for found in part.findings if found.level == findings.WARNING)
    remarks = f"; {odd:,} remarks on them, which task=check shows" if odd else ""
    print(f"check     {rows} questions are in order{remarks}", flush=True)


def _total(parts: Iterable[Part], test: bool) -> int:
    return sum(part.total for part in parts if (part.use == TEST) is test)


def check(config: Config) -> None:
    """`task=check`: look at everything, in a child process that has the model's processor, unless nothing has changed.

    Raises RunFailed where there are errors.
    """
    began = time.monotonic()
    folder = Path(config.paths["outputs"]) / CHECKS / _name(config)
    key = digest([RECIPE, _settings(config), state(read_parts(config)), _processor_state(config)])
    result = read_json(folder / RESULT) or {}
    if config.force or result.get("key") != key or not (folder / PAGE).is_file():
        result = _in_a_child(config, folder, key)
    print_result(result)
    errors = [found for part in result["parts"] for found in part["findings"] if found["level"] == findings.ERROR]
    again = "" if result["finished"] > time.time() - (time.monotonic() - began) else ", as before: nothing has changed"
    print(f"checked   in {time.monotonic() - began:.1f} s{again}")
    print(f"written   {folder / RESULT}, {folder / PAGE}", flush=True)
    if errors:
        raise RunFailed(f"check     {len(errors)} error{'s' * (len(errors) > 1)}; a run with these settings would stop")


def _in_a_child(config: Config, folder: Path, key: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="vlmft-check-") as scratch:
        request = Path(scratch) / "config.yaml"
        request.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
        environment = (
            child_environment(Hardware(device=Device.cpu))
            | without_waiting(config.model)
            | {"TOKENIZERS_PARALLELISM": "true"}
        )
        command = [sys.executable, "-m", "vlmft.check", str(request), str(folder), key]
        code = subprocess.run(command, env=environment).returncode
    if code:
        raise RunFailed(f"check     {how_it_died(code)}")
    return read_json(folder / RESULT)


def _name(config: Config) -> str:
    dataset = config.dataset.name or "+".join(config.eval.sets)
    return f"{config.model.name}-{dataset}-{digest(_settings(config))}"


def _settings(config: Config) -> Any:
    """What of a config decides what a check finds."""
    whole: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    model = {key: value for key, value in whole["model"].items() if key not in ("freeze", "lora_targets", "dtype")}
    return {
        "model": model, "dataset": whole["dataset"], "max_row_tokens": config.method.max_row_tokens,
        "sets": whole["eval"]["sets"], "own": config.eval.own, "max_rows": config.eval.max_rows,
        "bad_rows": whole["eval"]["bad_rows"], "max_new_tokens": config.eval.generation.max_new_tokens,
        "seed": config.seed, "debug": config.debug, "algorithm": config.method.algorithm.value,
    }  # fmt: skip


def _processor_state(config: Config) -> list[Any]:
    """Size and time of change of the model's small files: its processor is among them, its weights are not."""
    if config.model.tiny:
        return [config.model.tiny, TWINS]
    place = model_folder(config.model)
    files = sorted(place.glob("*")) if place and place.is_dir() else []
    return [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file() and file.suffix not in (".safetensors", ".bin")
    ]


def print_result(result: Mapping[str, Any]) -> None:
    """The parts in a table, and below it what was found, errors first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    for heading in ("questions", "images", "tokens a row", "of them visual", "closed answers"):
        table.add_column(heading, justify="right", overflow="fold")
    for part in result["parts"]:
        tokens = part["tokens"]
        table.add_row(
            part["name"], f"{part['questions']:,}", f"{part['images']:,}", _range(tokens.get("row")),
            _range(tokens.get("visual")), _commonest(part["balance"]),
        )  # fmt: skip
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table)
    for level in findings.LEVELS:
        for part in result["parts"]:
            for found in part["findings"]:
                if found["level"] == level:
                    print(f"{level:<9} {part['name']}: {_told(found, 3)}")


def _told(found: Mapping[str, Any], shown: int) -> str:
    """A finding in words, with the first rows."""
    if not found["rows"]:
        return str(found["what"])
    lines = [f"{found['what']}: {found['count']:,}", *found["rows"][:shown]]
    if found["count"] > shown:
        lines.append(f"… and {found['count'] - shown:,} more")
    return f"{os.linesep}            ".join(lines)


def _range(spread: Mapping[str, float] | None) -> str:
    if not spread:
        return ""
    return f"{spread['least']:,} – {spread['median']:,.0f} – {spread['most']:,}"


def _commonest(balance: Mapping[str, Mapping[str, int]], most: int = 3) -> str:
    said = []
    for answers in balance.values():
        total = sum(answers.values())
        said.append(", ".join(f"{answer} {100 * count / total:.0f} %" for answer, count in [*answers.items()][:most]))
    return "; ".join(said)

"""The commands of README.md and docs/: where they stand, and how each is executed where there are no real models, sets,
GPUs or servers.

A command is a line of a ```bash block, what stands in the column "type" of a table, or inline code that begins with a
program and says something to it. In that column, keys alone are added to `python train.py model=glm41v dataset=slake`;
in other places they are only mentioned, and composed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import ROOT
from vlmft import schema

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python train.py", "python benchmarks/", "vlmft", "make", "torchrun", "accelerate launch")
KEYS = re.compile(r"[+~]*[a-z][\w./@]*=\S+( [+~]*[a-z][\w./@]*=\S+)*")
# The last names of keys, by which a text about their node may call them.
PARTS = {name for kind in vars(schema).values() if is_dataclass(kind) for name in kind.__dataclass_fields__} - set(
    schema.Config.__dataclass_fields__
)

# What stands for what this machine does not have. Whatever is not named here is executed as it stands.
TWINS = {
    "glm41v": "tiny_glm41v", "glm41v_base": "tiny_glm41v_base", "glm45v": "tiny_glm45v", "qwen3vl_4b": "tiny_qwen3vl",
    "llama32_vision": "tiny_llama32_vision", "deepseek_r1_8b": "tiny_deepseek_r1",
}  # fmt: skip
PLACES = {  # a user's folders: those that the test has prepared beside data/, outputs/a and outputs/b
    "/my/data": "data", "/my/slake": "data/slake", "/my/semart": "data/semart", "/my/set": "my_set",
    "/my/pictures": "my_set", "/my/GLM-4.1V-9B-Thinking": "twin",
}  # fmt: skip
QUICKLY = {  # of train.py, unless the command says otherwise: a few rows, two steps, short answers, no GPU
    "hardware": "cpu", "debug": "true", "eval.generation.max_new_tokens": "8",
}  # fmt: skip
ON = {  # what hardware is told besides
    "gpus": "hardware.device=cpu", "slurm": "hardware.wait=false", "slurm_multinode": "hardware.wait=false",
}  # fmt: skip
NOT_HERE = ("--split-model", "--push", "you/name")  # several GPUs, the Hub
ELSEWHERE = {  # composed alone, since another test starts what takes long to start, or a launcher needs a cluster
    "hardware=fsdp": "tests/training/test_engines.py",
    "hardware=zero2": "tests/training/test_engines.py",
    "hardware=zero3": "tests/training/test_engines.py",
    "hardware=zero3_offload": "tests/training/test_engines.py",
    "hardware=ddp": "tests/test_several_processes.py",
    "torchrun": "tests/test_several_processes.py",
    "accelerate launch": "tests/test_several_processes.py",
    "hydra/launcher=submitit_slurm": "tests/slurm/test_disturbed.py",
    "hydra/launcher=submitit_local": "tests/slurm/test_arrays.py",
    "hardware.split_model=auto": "tests/models/test_split.py",
    "experiment=flare25_curriculum": "tests/test_stages.py",
    "python benchmarks/": "tests/test_benchmarks.py",
}


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    text: str
    typed: bool = True  # executed; else only mentioned

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def keys(self) -> list[str]:
        """What Hydra is told, of a command that composes."""
        words = self.words
        return [word for word in words[words.index("train.py") + 1 :] if word[0] != "-"] if "train.py" in words else []


def commands(page: Path) -> list[Command]:
    """Every command of a page, and what it mentions, in order."""
    return list(_found(page))


def _found(page: Path) -> Iterator[Command]:
    name, fence, header, begun = str(page.relative_to(ROOT)), None, [], ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip().strip("`")
        elif fence is not None:
            if fence == "bash" and (begun or line.strip()) and not line.lstrip().startswith("#"):
                begun += line.strip().removesuffix("\\")
                if not line.endswith("\\"):
                    yield Command(name, number, _alone(begun))
                    begun = ""
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            header = header or cells
            for column, cell in zip(header, cells, strict=False):
                yield from _spans(name, number, cell, typed=column == "type")
        else:
            header = []
            yield from _spans(name, number, line, typed=False)


def _alone(text: str) -> str:
    return shlex.join(shlex.split(text, comments=True)) if "#" in text else text


def _spans(page: str, number: int, text: str, *, typed: bool) -> Iterator[Command]:
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        if "…" in span and not span.startswith("python "):
            continue  # a pattern
        if KEYS.fullmatch(span):
            if not typed and span.partition("=")[0] in PARTS:
                continue
            yield Command(page, number, added(span), typed)
        elif program(span) and (typed or len(span.split()) > 2 or span.startswith("make ")):
            yield Command(page, number, span)


def program(text: str) -> str | None:
    return next((one for one in PROGRAMS if text == one or text.startswith(one if one[-1] == "/" else one + " ")), None)


def added(keys: str) -> str:
    """Keys alone, with the command that they are added to."""
    chosen = {key.partition("=")[0].lstrip("+") for key in shlex.split(keys)}
    rest = "" if chosen & {"experiment"} else "".join(
        f"{group}={option} "
        for group, option in (("model", "glm41v"), ("dataset", "slake"))
        if group not in chosen and not (group == "dataset" and "task=eval" in keys)
    )  # fmt: skip
    return f"python train.py {rest}{keys}"


def jobs(keys: list[str]) -> list[list[str]]:
    """The keys of a sweep's jobs, so many that each value of each axis is among them."""
    axes = []
    for key, parsed in zip(keys, OverridesParser.create().parse_overrides(keys), strict=True):
        name = key.partition("=")[0]
        values = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else None
        axes.append([f"{name}={value}" for value in values] if values else [key])
    return [[axis[n % len(axis)] for axis in axes] for n in range(max(map(len, axes), default=0))]


def elsewhere(command: Command) -> str | None:
    """The test that executes what is only composed here."""
    words = [program(command.text), *command.words]
    return next((test for what, test in ELSEWHERE.items() if what in words), None)


def stood_in(command: Command, model: str, server: str) -> Command:
    """The command with what stands for what is not here; `model` is the one that it composes to, `server` a URL."""
    text = command.text
    for place, own in sorted(PLACES.items(), key=lambda item: -len(item[0])):
        text = re.sub(rf"{re.escape(place)}(?![\w-])", own, text)
    words = [re.sub(r"^seed=(\d+),\S+", r"seed=\1", word) for word in shlex.split(text)]
    words = [re.sub(r"^(eval\.(?:judge\.)?url)=.*", rf"\1={server}", word) for word in words if word not in NOT_HERE]
    if program(text) != "python train.py":
        return replace(command, text=shlex.join(words))
    for number, word in enumerate(words):
        if word.startswith("model="):
            words[number] = "model=" + ",".join(TWINS.get(one, one) for one in word[6:].split(","))
    chosen = dict(word.partition("=")[::2] for word in words if "=" in word)
    if "model" not in chosen and model in TWINS:
        words.append(f"model={TWINS[model]}")
    words += [f"{key}={value}" for key, value in QUICKLY.items() if key not in chosen]
    words += [ON[name] for name in (chosen.get("hardware", ""),) if name in ON and ON[name] not in words]
    return replace(command, text=shlex.join(words))

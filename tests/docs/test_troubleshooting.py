"""docs/troubleshooting.md: the tests that it names exist, and the messages that it quotes are the code's."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlmft.data.question import IMAGE_MARK

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PAINS = ["1", "2", "3", "3b", *map(str, range(4, 17))]
CONSTANTS = {"IMAGE_MARK": IMAGE_MARK}
QUOTED = [line for block in re.findall(r"^```text\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines()]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@cache
def told() -> list[str]:
    """Every text of the code, with "…" for what is only known as it runs."""
    files = [file for folder in ("vlmft", "hydra_plugins") for file in (ROOT / folder).rglob("*.py")]
    return [re.sub(r"\s+", " ", text) for file in files for text in texts(ast.parse(file.read_text(encoding="utf-8")))]


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else CONSTANTS.get(ast.unparse(part.value), "…")
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def fixed_words(quoted: str) -> list[str]:
    """The clauses of a quoted message, without what differs from case to case; code often joins them as it runs."""
    runs = [run.strip(" :.,;=()") for run in re.split(r"…|[:;.] | \(", re.sub(r"\s+", " ", quoted))]
    return [run for run in runs if len(re.findall(r"\w\w+", run)) > 1]


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_the_codes(quoted: str) -> None:
    runs = fixed_words(quoted) or [quoted.replace(" ", "").strip("…")]
    for run in runs:
        assert any(run in text.replace("  ", " ") or run in text.replace(" ", "") for text in told()), run


def test_every_message_has_words_to_be_known_by() -> None:
    assert len(QUOTED) > 30
    assert [quoted for quoted in QUOTED if not fixed_words(quoted)] == ["rank … of …: …"]
    assert fixed_words("… of … rows cannot be used: …, and …") == ["rows cannot be used"]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_pain_is_in_the_table_with_a_test() -> None:
    rows = re.findall(r"^\| (\d+b?)\. [^|]+ \| [^|]+ \| (.+) \|$", TEXT, re.M)
    assert [number for number, _ in rows] == PAINS
    assert all(re.search(r"`tests/[\w/]+\.py::test_\w+`", tests) for _, tests in rows)


def test_a_checkpoint_that_could_not_be_resumed_is_refused_before_anything_is_made(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command("model=tiny_glm41v", "dataset=demo_ct", "method.trainer.save_only_model=true")
    assert done.returncode == 1 and "a checkpoint without optimiser state cannot be resumed from" in done.stderr
    assert not (tmp_path / "outputs").exists()

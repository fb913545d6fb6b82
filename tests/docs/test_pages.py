"""README.md and docs/ say what is so: each command composes as it stands, and each link, anchor and file is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from tests.conftest import ROOT
from tests.docs.commands import PAGES, PROGRAMS, TWINS, Command, commands, elsewhere, jobs, program
from vlmft.cli import _parser
from vlmft.config_check import check
from vlmft.errors import ConfigError

CONF = str(ROOT / "conf")
FOLDERS = "vlmft|conf|tests|benchmarks|docs|hydra_plugins|multirun_reports"
WRITTEN = ("conf/local.yaml", "multirun_reports/medvqa_grid/")  # by a user, by a command


@contextmanager
def told(place: str) -> Iterator[None]:
    try:
        yield
    except (HydraException, ConfigError, SystemExit, AssertionError) as error:
        pytest.fail(f"{place}\n{error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_compose_as_they_stand(page: Path) -> None:
    """What is typed passes vlmft's check; of what is only mentioned, Hydra knows the keys and their types."""
    done: dict[tuple[str, ...], DictConfig] = {}
    with initialize_config_dir(version_base="1.3", config_dir=CONF):
        for command in commands(page):
            with told(command.place):
                known(command)
                for keys in jobs(command.keys):
                    if (words := tuple(keys)) not in done:
                        done[words] = compose("config", [*keys, "hydra/sweeper=basic"])
                        if command.typed:
                            check(done[words])


def known(command: Command) -> None:
    """Fails unless the program of a command, and what it is told, are there."""
    name, words = program(command.text), command.words
    assert name, f"no program of {', '.join(PROGRAMS)}"
    if name == "vlmft":
        _parser().parse_args(words[1:])
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif name == "python benchmarks/":
        source = (ROOT / words[1]).read_text() + "".join(
            file.read_text() for file in (ROOT / "benchmarks").glob("*.py")
        )
        options = [word for word in words[2:] if word.startswith("--")]
        assert all(f'"{option}"' in source for option in options), options
    if test := elsewhere(command):
        assert (ROOT / test).is_file()


def test_every_real_model_has_a_twin() -> None:
    models = {file.stem for file in (ROOT / "conf" / "model").glob("*.yaml")}
    assert set(TWINS) | set(TWINS.values()) == models


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_what_pages_point_to_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"
    for file in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text):
        assert (ROOT / file).exists() or file in WRITTEN, file
    for found in re.finditer(r"`(tests/[\w/]+\.py)`, `(test_\w+)`", text):
        assert f"def {found[2]}(" in (ROOT / found[1]).read_text(), found[0]


def test_sizes_and_presets_that_readme_names_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 210, "five minutes"
    for group in ("model", "method", "hardware"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in readme or f"={file.stem}`" in readme or file.stem in ("auto", "cpu") or (
                file.stem.startswith("tiny_") and "`tiny_…`" in readme
            ), f"{group}={file.stem}"  # fmt: skip

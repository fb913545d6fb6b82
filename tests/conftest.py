"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.prepared import TRAIN, Prepared
from vlmft.config_check import check
from vlmft.schema import Config, Model

ROOT = Path(__file__).resolve().parents[1]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The slow files that take longest: begun first, what computes beside what waits, so that none is left at the end.
LONGEST = ("docs/test_docs.py", "slurm/test_disturbed.py", "docs/test_readme.py", "slurm/", "test_benchmarks.py",
           "training/test_engines.py", "test_preferences.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.nodeid.removeprefix("tests/")
        return next((number for number, first in enumerate(LONGEST) if name.startswith(first)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What earlier modules have imported is not searched for garbage whenever a trainer lets go of memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published sets, $VLMFT_REAL_DATA or else ../shared/data; skips where there is none."""
    named = os.environ.get("VLMFT_REAL_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published sets are not at {folder} (set VLMFT_REAL_DATA to their folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this session's own, so that the tests also draw the demo sets and write the twins."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VLMFT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def composed() -> Callable[..., Config]:
    """composed("model=tiny_glm41v", …): the checked config of a command line."""

    def of(*overrides: str) -> Config:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            return check(compose("config", list(overrides)))

    return of


@pytest.fixture(scope="session")
def tiny(composed: Callable[..., Config]) -> Model:
    """The model node of the tiny GLM-4.1V."""
    model = composed("model=tiny_glm41v").model
    return model


@pytest.fixture(scope="session")
def prepared() -> Iterator[Prepared]:
    interpreter = Prepared()
    yield interpreter
    interpreter.end()


@pytest.fixture
def command(tmp_path: Path, prepared: Prepared) -> Callable[..., subprocess.CompletedProcess[str]]:
    """command("model=…", …): run train.py as a user would, with its outputs below the test's own folder.

    Where `env` has something that libraries read as they are imported, all is imported anew.
    """

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        if env is None or not prepared.others(env):
            return prepared.run([TRAIN, *arguments], tmp_path, env)
        return subprocess.run(
            [sys.executable, TRAIN, *arguments],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """programs("squeue", "echo …"): a shell script of that name, first on PATH; others of the machine's are hidden."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make

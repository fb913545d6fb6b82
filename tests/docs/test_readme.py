"""Every command of README.md is executed, and those of the pages about grids and clusters that go on from its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.executed import Folder, Run, served
from tests.prepared import Prepared

PAGES = (ROOT / "README.md", ROOT / "docs" / "reports.md", ROOT / "docs" / "clusters.md")


@pytest.mark.slow
def test_its_commands_do_what_they_say(command: Run, prepared: Prepared, tmp_path: Path) -> None:
    folder = Folder(tmp_path, command, prepared)
    folder.prepare()
    with served(folder):
        wrong = [words for page in PAGES for words in folder.execute(page)]
    assert not wrong, "\n\n".join(wrong)

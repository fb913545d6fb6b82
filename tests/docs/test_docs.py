"""Every command of docs/ is executed; those of the pages about grids and clusters with README.md's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs import test_readme
from tests.docs.executed import Folder, Run, served
from tests.prepared import Prepared

ORDER = ("data", "training", "scoring", "packing", "servers", "troubleshooting")


@pytest.mark.slow
def test_their_commands_do_what_they_say(command: Run, prepared: Prepared, tmp_path: Path) -> None:
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page not in test_readme.PAGES]
    folder = Folder(tmp_path, command, prepared)
    folder.prepare()
    with served(folder):
        wrong = [
            words for page in sorted(pages, key=lambda page: ORDER.index(page.stem)) for words in folder.execute(page)
        ]
    assert not wrong, "\n\n".join(wrong)

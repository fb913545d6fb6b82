"""The report of a sweep, or of some runs, as files in one folder. Made anew from the run directories each time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmft.errors import DataError
from vlmft.files import write_text
from vlmft.report import charts
from vlmft.report.markdown import report_md
from vlmft.report.matrix import matrix
from vlmft.report.scan import Sweep
from vlmft.report.tables import cells_csv, matrix_tex
from vlmft.schema import Eval

PATIENCE = 60.0  # seconds, for another process that writes the same report
COMPARISONS = ".comparisons.json"


def build(sweep: Sweep, folder: Path, *, images: bool = True) -> list[Path]:
    """Write report.md, cells.csv, matrix.tex, the pictures and index.html into `folder`, and return them.

    Two processes write one after the other. Raises DataError where the other one does not come to its end.
    """
    from vlmft.report.page import page

    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        usual = Eval().protocols
        protocols = sorted(sweep.protocols, key=lambda name: usual.index(name) if name in usual else len(usual))
        protocols = protocols or usual[:1]  # before the first score: what is planned
        matrices = [matrix(sweep, protocol, folder / COMPARISONS) for protocol in protocols]
        pictures = charts.draw(sweep, matrices, folder)
        texts = {
            "report.md": report_md(sweep, matrices),
            "cells.csv": cells_csv(sweep, matrices),
            "matrix.tex": "\n".join(map(matrix_tex, matrices)),
            "index.html": page(sweep, matrices, pictures, images=images),
        }
        for name, text in texts.items():
            write_text(folder / name, text)
        return [*(folder / name for name in texts), *pictures]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE
    with open(folder / ".lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataError(f"{folder}: another process has been writing this report for a minute") from None
                time.sleep(0.1)
        yield

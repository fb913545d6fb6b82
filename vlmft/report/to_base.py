"""What training was worth: each run against the model it began with, on the questions both answered.

A comparison reads two files of predictions and draws ten thousand resamples, so each is made once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmft.evaluation import results
from vlmft.evaluation.comparison import compare
from vlmft.evaluation.predictions import generation_of, predictions_file
from vlmft.files import read_json, write_json
from vlmft.report.scan import Run


class Comparisons:
    """Those of one protocol; what was found for the same predictions before is taken from the JSON file `cache`."""

    def __init__(self, protocol: str, cache: Path | None) -> None:
        self.protocol = protocol
        self.cache = cache
        self.scoring = results.scoring_hash()
        self._all = (read_json(cache) if cache else None) or {}
        self._known = dict(self._all.get(protocol, {}))
        self._used: dict[str, Any] = {}
        self._records: dict[tuple[Path, str], list[dict[str, Any]]] = {}  # of the bases, which every row needs

    def of(self, base: Run, run: Run, name: str) -> dict[str, Any] | None:
        """`compare` of the two on a set; None where one has no predictions on it, or they share no question."""
        generations = [generation_of(predictions_file(one.folder, name)) for one in (base, run)]
        if None in generations:
            return None
        key = " ".join([name, self.scoring, base.name, run.name, *map(str, generations)])
        if key not in self._known:
            first = self._records.setdefault((base.folder, name), [])
            first[:] = first or base.predictions(name)
            second = run.predictions(name)
            shared = {record["id"] for record in first} & {record["id"] for record in second}
            self._known[key] = compare(first, second, self.protocol) if shared else None
        self._used[key] = self._known[key]
        return self._used[key]

    def keep(self) -> None:
        """Write what was asked for since; what no longer was is forgotten."""
        if self.cache and self._used != self._all.get(self.protocol):
            write_json(self.cache, self._all | {self.protocol: self._used})

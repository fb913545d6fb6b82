"""Small drawn sets in their publishers' own layouts, for tests and for trying things on a CPU."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from vlmft.errors import DataError
from vlmft.files import made_once
from vlmft.schema import Config

RECIPE = 2  # of what is drawn and asked; raise it with every change to that
KINDS = ("aqua", "flare25", "pathvqa", "pmc_vqa", "pmc_vqa_v2", "slake", "vqa_rad")
MARKER = "sample.json"


def write_sample(kind: str, folder: str | os.PathLike[str]) -> Path:
    """Draw the set `kind` (one of KINDS) into `folder` unless it is there already, and return the folder.

    A set of an older recipe is drawn anew; nobody sees half of one. Raises DataError for an unknown kind, a folder
    that holds something else, or one that cannot be written.
    """
    folder = Path(folder).expanduser()
    if kind not in KINDS:
        raise DataError(f"there is no drawn sample {kind!r}; there are {', '.join(KINDS)}.")
    try:
        if not made_once(folder, MARKER, kind, RECIPE, lambda fresh: _writer(kind)(fresh)):
            raise DataError(f"{folder} is not the drawn sample {kind}: remove it, or choose another folder.")
    except OSError as error:
        raise DataError(f"cannot draw the sample {kind} into {folder}: {error}. Choose another folder.") from error
    return folder


def take_place(config: Config) -> None:
    """Let every set of the config be read from its drawn sample in the cache, drawn first if need be (`samples=true`).

    Demo sets stay what they are. Raises DataError for a set without a sample, and as `write_sample`.
    """
    trained = (config.dataset, *config.stages.values())
    specs = [spec for dataset in trained for spec in (dataset, *dataset.sets.values())]
    for spec in (*specs, *config.eval.sets.values()):
        kind = spec.name if spec.name in KINDS else spec.format
        if kind in ("", "demo"):  # a mixture has no format of its own
            continue
        if kind not in KINDS:
            raise DataError(f"samples=true: no sample is drawn of {spec.name}; there are {', '.join(KINDS)}.")
        place = write_sample(kind, Path(config.paths["cache"]) / "samples" / kind)
        spec.path, spec.hub, spec.revision, spec.image_root = str(place), None, None, None
        spec.knowledge = spec.knowledge and str(place)


def dealt(factors: Mapping[str, Sequence[str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """The facts of `count` pictures, each factor's values spread evenly over them in an order of their own."""
    decks = {name: [values[n % len(values)] for n in range(count)] for name, values in factors.items()}
    for deck in decks.values():
        rng.shuffle(deck)
    return [{name: deck[n] for name, deck in decks.items()} for n in range(count)]


def _writer(kind: str) -> Callable[[Path], object]:
    from vlmft.data.samples import aqua, flare25, medvqa, pmc_vqa

    writers: dict[str, Callable[[Path], object]] = {
        "aqua": aqua.write_aqua,
        "flare25": flare25.write_flare25,
        "pathvqa": medvqa.write_pathvqa,
        "pmc_vqa": pmc_vqa.write_pmc_vqa,
        "pmc_vqa_v2": partial(pmc_vqa.write_pmc_vqa, version=2),
        "slake": medvqa.write_slake,
        "vqa_rad": medvqa.write_vqa_rad,
    }
    return writers[kind]

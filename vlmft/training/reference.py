"""What the reference model of DPO says of every pair, computed once and kept for all runs that start alike.

The reference is the model that training starts from, with the adapter it goes on from. So its log-probabilities are
known before the first step: no second model stays in memory, and a grid over beta or the learning rate computes them
once. They are kept in the cache under a digest of all that decides them: starting weights, rows and pictures, device.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlmft.chat.encode import Encoder, Pair, Row
from vlmft.chat.packing import groups, pack, questions_per_row
from vlmft.errors import DataError
from vlmft.evaluation.batches import batches
from vlmft.fetch import model_folder
from vlmft.files import cache_folder, file_digests
from vlmft.hardware import Decisions
from vlmft.identity import model_facts, weights_fingerprint
from vlmft.models.log_probabilities import log_probabilities
from vlmft.schema import Config
from vlmft.training import init_from

logger = logging.getLogger(__name__)


def with_reference(
    config: Config, model: Any, rows: Sequence[Row], encoder: Encoder, decisions: Decisions, scratch: Path,
    progress: Callable[[int], None],
) -> list[Row]:  # fmt: skip
    """The pairs with the reference's log-probabilities, computed where no run has done so before.

    `model` is the one that `init_from.load` gives, and stays as it is. A computation that was killed goes on where it
    was; another run that wants the same waits for it. Raises DataError where one is not finite.
    """
    pairs: Any = rows
    file = cache_folder() / "reference" / f"{_digest(config, pairs, decisions)}.jsonl"
    if not file.is_file():
        with _alone(file):
            if not file.is_file():
                partial = file.with_name(f".{file.name}")
                with _starting(config, model, decisions, scratch) as start:
                    _compute(config, start, pairs, encoder, decisions, partial, progress)
                os.replace(partial, file)
    else:
        logger.info("reference known from an earlier run for %s pairs", f"{len(pairs):,}")
    known = dict(_lines(file))
    return [replace(pair, reference=known[number]) for number, pair in enumerate(pairs)]


def _compute(
    config: Config, model: Any, pairs: Sequence[Pair], encoder: Encoder, decisions: Decisions, partial: Path,
    progress: Callable[[int], None],
) -> None:  # fmt: skip
    """Write the number and both log-probabilities of each pair, batch by batch."""
    import torch

    done = {number for number, _ in _lines(partial)}
    shares = questions_per_row(config.method, model.config.model_type) > 1
    together = groups(pairs, encoder.image_token_id) if shares else [([n], 0) for n in range(len(pairs))]
    with _whole_lines(partial) as file:
        for batch in batches(pairs, together, decisions.micro_batch):
            numbers = [number for part, _ in batch for number in part]
            if not done.issuperset(numbers):
                packs = [pack([pairs[number] for number in part], prefix) for part, prefix in batch]
                with torch.autocast(decisions.device, torch.bfloat16, enabled=decisions.bf16):
                    said = iter(log_probabilities(model, encoder, packs))
                for number, both in zip(numbers, zip(said, said, strict=True), strict=True):
                    if number in done:  # its batch was cut short
                        continue
                    if not all(abs(value) < float("inf") for value in both):  # false of what is no number, too
                        raise DataError(f"{pairs[number].question}: the reference's log-probabilities are {both}")
                    file.write(json.dumps([number, *both]) + "\n")
                file.flush()
                done.update(numbers)
            progress(len(done))
        os.fsync(file.fileno())
    logger.info("reference computed for %s pairs", f"{len(pairs):,}")


@contextmanager
def _starting(config: Config, model: Any, decisions: Decisions, scratch: Path) -> Iterator[Any]:
    """The model with the adapter that training goes on from, which is off again afterwards."""
    from peft import PeftConfig

    from vlmft.models.adapters import load_adapter

    adapter = init_from.adapter_to_go_on(config)
    if adapter and PeftConfig.from_pretrained(str(adapter)).init_lora_weights not in (True, False, "gaussian"):
        model = init_from.load(config, decisions.load_dtype, scratch)  # PiSSA and its like write into the base
    if decisions.device == "cuda" and not config.method.quantization:
        model.to("cuda")
    if not adapter:
        yield model.eval()
        return
    adapted = load_adapter(model, adapter)
    yield adapted
    adapted.delete_adapter(adapted.active_adapter)  # `unload` would leave what an active one trained whole
    adapted.unload()


def _digest(config: Config, pairs: Sequence[Pair], decisions: Decisions) -> str:
    """Of all that decides the values, rounding included: also which pairs are read together."""
    start = init_from.start(config)
    folder = model_folder(config.model)
    decides = {
        "model": model_facts(config.model),
        # A branch of a repository moves on; a snapshot's folder is named by its commit.
        "commit": folder.name if folder and folder.parent.name == "snapshots" else None,
        "start": start and weights_fingerprint(start.folder),
        "peft": config.method.peft if start else None,  # whether the adapter is merged
        "quantization": config.method.quantization,
        "packing": [config.method.packing.value, config.method.max_questions_per_row],
        "device": decisions.as_dict(),
        "versions": [version("torch"), version("transformers")],
    }
    total = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    paths = list(dict.fromkeys(path for pair in pairs for path, _ in pair.images))
    content = dict(zip(paths, file_digests([Path(path) for path in paths]), strict=True))
    for pair in pairs:
        for branch in pair.branches:
            total.update(array("q", [len(branch.input_ids), *branch.input_ids, *branch.labels]).tobytes())
        total.update(repr([(content[path], size) for path, size in pair.images]).encode())
    return total.hexdigest()[:32]


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("reference another run computes it: waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _whole_lines(file: Path) -> Iterator[Any]:
    """The file to go on with, without a last line that a kill cut short."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    with open(file, "w", encoding="utf-8") as lines:
        lines.write(text[: text.rfind("\n") + 1])
        yield lines


def _lines(file: Path) -> Iterator[tuple[int, tuple[float, float]]]:
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        number, chosen, rejected = json.loads(line)
        yield number, (chosen, rejected)

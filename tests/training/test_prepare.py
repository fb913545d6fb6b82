"""What training starts from: rows, device and model, as they follow from the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.conversation_rows import row
from vlmft.data.samples import write_sample
from vlmft.models.load import part_of
from vlmft.schema import Config
from vlmft.status import Status
from vlmft.training.prepare import prepare


@pytest.mark.parametrize("shown", [False, True], ids=["text alone", "with a picture"])
def test_without_pictures_what_sees_is_not_trained(
    shown: bool, composed: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its gradients would be none, and under DDP or ZeRO it would still be waited and paid for."""
    picture = next(write_sample("slake", tmp_path / "drawn").rglob("*.jpg"))
    rows = [row(f"Is {n} even?", "yes", image=None) for n in (2, 4, 6)] + [row(image=str(picture))] * shown
    (tmp_path / "train.json").write_text(json.dumps(rows))
    config = composed(
        "model=tiny_glm41v", "dataset=conversations", f"dataset.path={tmp_path}", "dataset.absolute_paths=true",
        "method=full", "method.batch_size=2", "eval=none", "hardware=cpu",
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        made = prepare(config, tmp_path, Status(tmp_path))
    trained = {part_of(name) for name, weight in made.model.named_parameters() if weight.requires_grad}
    assert trained == ({"llm", "vision", "projector"} if shown else {"llm"})
    assert ("no row shows a picture" in caplog.text) is not shown

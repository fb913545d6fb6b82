"""Out of GPU memory in training: half the micro-batch, the same questions a step, noted; a word where it is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from vlmft import start as parent
from vlmft import worker
from vlmft.errors import AGAIN, DataError, RunFailed
from vlmft.evaluation import results
from vlmft.evaluation.runs import Together
from vlmft.files import read_json
from vlmft.hardware import Decisions
from vlmft.provenance import decided
from vlmft.schema import Config
from vlmft.training.out_of_memory import smaller, within

CPU = Decisions("cpu", "float32", bf16=False, micro_batch=8, gradient_checkpointing=False)


def test_the_micro_batch_halves_until_it_is_one(tmp_path: Path) -> None:
    """Of a step of 24 questions: 8, then at most 4, then 2, then 1."""
    seen, now = [], CPU
    while now.micro_batch > 1:
        assert f"with micro-batch {now.micro_batch}: going on with" in str(smaller(tmp_path, now, 24))
        seen.append(now.micro_batch)
        now = within(tmp_path, CPU, 24)
        assert decided(tmp_path) == now.as_dict()
    assert seen == [8, 4, 2] == results.read(tmp_path)["out_of_memory"]
    with pytest.raises(DataError, match=r"lower model\.max_pixels"):
        smaller(tmp_path, now, 24)
    assert within(tmp_path, replace(CPU, micro_batch=1), 24).micro_batch == 1


def test_of_a_step_that_does_not_halve(tmp_path: Path) -> None:
    smaller(tmp_path, replace(CPU, micro_batch=5), 15)
    assert within(tmp_path, replace(CPU, micro_batch=15), 15).micro_batch == 1, "15 is 1, 3, 5, 15; at most 2"


def test_a_run_goes_on_in_smaller_micro_batches(
    composed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out after a checkpoint, and the second worker resumes from that: the weights of an easy run."""
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=40", "method=lora", "eval=none",
                      "method.batch_size=4", "hardware.micro_batch=4", "method.trainer.max_steps=6", "hardware=cpu",
                      "method.trainer.save_steps=2", "method.trainer.learning_rate=1e-3")  # fmt: skip
    easy, hard = tmp_path / "easy", tmp_path / "hard"
    for run in (easy, hard):
        run.mkdir()
        (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert attempt(config, easy) == 0

    from vlmft.training.sft import VqaTrainer

    def too_much(self: Any, model: Any, inputs: Any, *args: Any, real: Any = VqaTrainer.training_step) -> Any:
        if self.state.global_step == 3 and len(inputs["questions"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, inputs, *args)

    monkeypatch.setattr(VqaTrainer, "training_step", too_much)
    assert attempt(config, hard) == AGAIN
    status = read_json(hard / "status.json")
    assert (
        status["state"] == "interrupted" and "with micro-batch 4: going on with 2, 2 of them a step" in status["error"]
    )
    assert attempt(config, hard) == 0
    result = results.read(hard)
    assert result["out_of_memory"] == [4] and result["train"]["device"]["micro_batch"] == 2
    assert result["train"]["steps"] == 6 and result["train"]["questions"] == results.read(easy)["train"]["questions"]
    first, second = (load_file(run / "final" / "adapter_model.safetensors") for run in (easy, hard))
    assert all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5) for name in first)


def attempt(config: Config, run: Path) -> int:
    return worker._attempt(run, config, config, Together(), evaluate_only=False)


def test_the_parent_starts_the_worker_again(composed: Callable[..., Config], tmp_path: Path) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "hardware=cpu")
    said = tmp_path / "said"
    code = f"import pathlib, sys; p = pathlib.Path({str(said)!r}); n = len(p.read_text()) if p.exists() else 0; " \
           f"p.write_text('x' * (n + 1)); sys.exit({AGAIN} if n < 2 else {{end}})"  # fmt: skip
    parent.work([], ["-c", code.format(end=0)], config)
    assert said.read_text() == "xxx"
    said.unlink()
    with pytest.raises(RunFailed, match="exit code 3"):
        parent.work([], ["-c", code.format(end=3)], config)

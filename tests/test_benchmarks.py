"""The README's ratios hold: each benchmark runs, and stays above the floor that is promised."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from benchmarks import crash
from tests.conftest import ROOT
from tests.prepared import Prepared


def measured(name: str, *options: str) -> Any:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--json", "--rounds", "3", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_packed_training_is_several_times_as_fast_as_stock_trl() -> None:
    found = measured("packing.py")["slake_shaped"]
    assert found["train_ratio"] >= 6
    assert found["loss_difference"] < 1e-6 and found["gradient_difference"] < 1e-4


@pytest.mark.slow
def test_evaluation_is_several_times_as_fast_with_the_same_texts() -> None:
    found = measured("evaluation.py")["slake_shaped"]
    assert found["eval_ratio_single"] >= 8 and found["eval_ratio_batched"] >= 4
    assert found["texts_differ"] == 0 and found["distinct_texts"] > 3


@pytest.mark.slow
def test_encoding_is_faster_than_row_by_row_in_little_memory() -> None:
    found = measured("encoding.py", "--rows", "4000", "--sample", "1000")["pmc_vqa"]
    assert found["rows"] == 4000 and found["encode_ratio"] >= 2
    assert found["peak_gb"] - found["libraries_gb"] < 0.2


@pytest.mark.slow
def test_streaming_a_file_takes_no_memory_for_its_rows() -> None:
    found = measured("streaming.py", "--rows", "20000", "--whole", "20000", "--rounds", "1")["streamed"]
    assert found["rows"] == 20_000 and found["growth_mb"] < 20 < found["whole_mb"]


@pytest.mark.slow
def test_pairs_have_the_loss_of_stock_trl_and_are_timed_against_it() -> None:
    """The loss; in the smallest size, which is little but overheads, a ratio is only a number."""
    smallest = ("--pairs", "4", "--batch", "4", "--side", "84", "--layers", "1", "--rounds", "1")
    found = measured("dpo.py", *smallest)
    assert found["pair_ratio"] > 0 and found["beta_sweep_ratio"] > 0
    assert found["shared_pair_ratio"] > 0 and found["shared_beta_sweep_ratio"] > 0
    assert found["loss_difference"] < 1e-5 and found["image_tokens"] == 9


@pytest.mark.slow
def test_killed_runs_come_to_the_weights_of_undisturbed_ones(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill of each kind of run, with each signal, two of them inside a save."""
    monkeypatch.setattr(crash, "run", partial(prepared.run, timeout=crash.PATIENCE, session=True))
    monkeypatch.setenv("VLMFT_CACHE", "")  # which it sets
    monkeypatch.setattr(sys, "argv", ["crash.py", "--json", "--kills", "3", "--together", "2"])
    crash.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["kills"], found["inside_a_save"], found["equal"]) == (3, 2, 3)
    one = {"kills": 1, "equal": 1}
    assert found["by_kind"] == dict.fromkeys(("full", "lora", "dpo"), one)
    assert found["by_signal"] == dict.fromkeys(("SIGKILL", "SIGTERM", "SIGUSR2"), one)
    assert sum(bar["kills"] for bar in found["by_place"].values()) == 3
    assert sum(bar["kills"] for place, bar in found["by_place"].items() if place.startswith("save: ")) == 2

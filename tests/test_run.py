"""Whole runs through train.py, as a user starts them: what is on disk afterwards, and what the command does again."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.start_time import assert_quick

Command = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=24", "method.trainer.max_steps=3",
         "method.trainer.learning_rate=1e-3", "method.batch_size=4", "hardware=cpu", "eval.max_rows=12",
         "eval.generation.max_new_tokens=16")  # fmt: skip


def only_run(folder: Path) -> Path:
    (run,) = (path for path in (folder / "outputs").iterdir() if path.is_dir() and path.name[0] != ".")
    return run


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def conversations(folder: Path, image: bytes | None) -> Path:
    """A set of two questions, with `image` as the bytes of its picture (None: the picture is missing)."""
    folder.mkdir(parents=True)
    if image is not None:
        (folder / "a.jpg").write_bytes(image)
    rows = [
        {"id": n, "image": "a.jpg", "conversations": [{"from": "human", "value": f"<image>\nIs it {word}?"},
                                                      {"from": "gpt", "value": "yes"}]}
        for n, word in enumerate(("red", "blue"))
    ]  # fmt: skip
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


def test_a_run_from_first_start_to_what_the_same_command_does_again(command: Command, tmp_path: Path) -> None:
    done = command(*SMALL, "method=lora", "eval.ablations=[blank]", "eval.debug_matches=2")
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    assert run.name.startswith("tiny_glm41v-demo_ct-lora-s0-")
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "provenance.json", "status.json", "result.json", "train.log", "tensorboard", "final",
        "predictions_demo_ct.jsonl", "predictions_demo_ct.blank.jsonl", "trained_on.jsonl", "checkpoint-3",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"], "and nothing of Hydra's anywhere"
    result = read(run / "result.json")
    assert (result["schema"], result["run"], result["state"]) == (2, run.name, "done")
    assert result["train"]["steps"] == 3 and result["train"]["questions"] == 12 and result["train"]["loss"] > 0
    found = result["evaluations"]["demo_ct"]
    records = [json.loads(line) for line in (run / "predictions_demo_ct.jsonl").read_text().splitlines()]
    assert found["n"] == len(records) > 5 and all({"raw", "finish_reason", "gold"} <= r.keys() for r in records)
    for protocol in ("normalized", "strict"):
        scores = found["scores"][protocol]
        of = {name: metric["n"] for name, metric in scores["metrics"].items()}
        assert scores["correct"] + scores["incorrect"] == found["n"] == of["accuracy"]
        assert of["closed_accuracy"] + of["open_exact_match"] == found["n"]
    assert 0 < found["floor"]["question_only"]["normalized"]["accuracy"] < 1
    counts = found["leakage"]["demo_ct"]
    assert counts["questions"] == found["n"] and counts["same_image"] == 0
    assert all(record["train"].keys() >= {"question_only", "answer_seen", "image", "pair"} for record in records)
    assert "leakage   nothing of demo_ct is in train" in done.stdout
    blank = [json.loads(line) for line in (run / "predictions_demo_ct.blank.jsonl").read_text().splitlines()]
    assert [record["id"] for record in blank] == [record["id"] for record in records]
    without = result["evaluations"]["demo_ct.blank"]
    assert without["difference"]["normalized"]["n"] == without["n"] == found["n"]
    assert "demo_ct, blank: the pictures are worth" in done.stdout
    assert "demo_ct, normalized: raw | understood | gold | verdict" in done.stdout
    assert "demo_ct" in done.stdout and str(run.relative_to(tmp_path)) in done.stdout
    provenance = read(run / "provenance.json")
    assert provenance["decided"]["micro_batch"] == 4 and provenance["attempts"][0]["packages"]["torch"]
    status = read(run / "status.json")
    assert (status["state"], status["attempt"]) == ("done", 1)

    again = command(*SMALL, "method=lora", "label=anything", "log_level=debug", "paths.root=elsewhere")
    assert again.returncode == 0 and "nothing to do" in again.stdout and "demo_ct" in again.stdout
    assert read(run / "status.json") == status

    squad = command(*SMALL, "method=lora", "eval.protocols=[squad]", "eval.ablations=[blank]")
    assert squad.returncode == 0 and squad.stdout.count("rescored") == 2
    rescored = read(run / "result.json")["evaluations"]
    for name, before in result["evaluations"].items():
        assert list(rescored[name]["scores"]) == ["squad", "normalized", "strict"], "those of before stay"
        assert rescored[name]["scores"]["strict"] == before["scores"]["strict"]
        assert {key: rescored[name][key] for key in ("leakage", "generation", "dropped_rows")} == {
            key: before[key] for key in ("leakage", "generation", "dropped_rows")
        }
    assert read(run / "status.json") == status, "scoring again needs no worker"

    whole = (run / "predictions_demo_ct.jsonl").read_text()
    weights = (run / "final" / "adapter_model.safetensors").stat().st_mtime_ns
    more = command(*SMALL, "method=lora", "eval=demo", "eval.max_rows=6", "eval.protocols=[strict]")
    assert more.returncode == 0, more.stderr
    assert list(read(run / "result.json")["evaluations"]) == ["demo_ct", "demo_xray", "demo_path"], (
        "and no pass without pictures of other predictions"
    )
    assert [kept.read_text() for kept in (run / "earlier").iterdir()] == [whole], "other predictions are kept"
    assert (run / "final" / "adapter_model.safetensors").stat().st_mtime_ns == weights, "and nothing trained again"

    forced = command(*SMALL, "method=lora", "force=true", "eval=none")
    assert forced.returncode == 0, forced.stderr
    assert len([path for path in run.parent.iterdir() if path.name.startswith(f"{run.name}.old-")]) == 1
    assert read(run / "result.json")["evaluations"] == {}


def test_evaluation_without_training(command: Command, tmp_path: Path) -> None:
    brief = "eval.generation.max_new_tokens=16"
    base = command("task=eval", "model=tiny_glm41v", "eval=demo", "eval.max_rows=6", "hardware=cpu", brief)
    assert base.returncode == 0, base.stderr
    run = only_run(tmp_path)
    assert run.name.startswith("tiny_glm41v-base-")
    result = read(run / "result.json")
    assert result["train"] is None and set(result["evaluations"]) == {"demo_ct", "demo_xray", "demo_path"}
    assert all("leakage" not in found for found in result["evaluations"].values()), "nothing was trained on"
    listed = command("task=eval", f"runs=[{run}]", "eval=demo", "eval.max_rows=5", "hardware=cpu", brief,
                     "eval.closed=likelihood")  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert read(run / "result.json")["evaluations"]["demo_ct"]["n"] < 12
    records = [json.loads(line) for line in (run / "predictions_demo_ct.jsonl").read_text().splitlines()]
    assert {record["answer_type"] for record in records} == {"closed", "open"}
    for record in records:
        assert ("likelihood" in record) == (record["answer_type"] == "closed"), record
    chosen = {record["raw"] for record in records if record["answer_type"] == "closed"}
    assert chosen <= {"yes", "no"}, chosen
    assert read(run / "status.json")["attempt"] == 2
    own = command("task=eval", "model=tiny_glm41v", "dataset=demo_ct", "eval.max_rows=4", "hardware=cpu", brief)
    assert own.returncode == 0 and not (run / "final").exists(), "a dataset with task=eval is not trained on"
    wrong = command("task=eval", "runs=[outputs/nothing]", "eval=demo")
    assert wrong.returncode == 1 and "outputs/nothing is no run directory" in wrong.stderr


def test_a_failure_is_told_in_the_log_the_status_and_the_exit_code(command: Command, tmp_path: Path) -> None:
    data = conversations(tmp_path / "mine", b"no picture")
    done = command(*SMALL, "dataset=conversations", f"dataset.path={data}", "check=off")
    assert done.returncode == 1
    run = only_run(tmp_path)
    assert "a.jpg cannot be read as an image" in done.stderr and "train.log" in done.stderr
    assert "Traceback" not in done.stderr
    log = (run / "train.log").read_text()
    assert "Traceback (most recent call last)" in log and "a.jpg cannot be read as an image" in log
    status = read(run / "status.json")
    assert status["state"] == "failed" and "a.jpg" in status["error"]


def test_what_is_missing_is_said_before_anything_is_written(command: Command, tmp_path: Path) -> None:
    done = command("model=tiny_glm41v", "dataset=vqa_rad", "paths.vqa_rad=nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr and "paths.vqa_rad" in done.stderr
    assert not (tmp_path / "outputs").exists()
    data = conversations(tmp_path / "mine", None)
    missing = command(*SMALL, "dataset=conversations", f"dataset.path={data}")
    assert missing.returncode == 1 and "a.jpg is not there" in missing.stderr


def test_the_second_start_says_who_is_at_work(command: Command, tmp_path: Path) -> None:
    data = conversations(tmp_path / "mine", b"no picture")
    mine = (*SMALL, "dataset=conversations", f"dataset.path={data}", "check=off")
    command(*mine)
    name = only_run(tmp_path).name
    with open(tmp_path / "outputs" / ".locks" / name, "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate()
        lock.write(json.dumps({"pid": 77, "host": "here", "since": "noon"}))
        lock.flush()
        done = command(*mine)
    assert done.returncode == 1 and "process 77 on here since noon is at work on it" in done.stderr


def test_another_device_is_refused_and_a_decided_micro_batch_is_kept(tmp_path: Path, composed: Any) -> None:
    from vlmft.errors import DataError
    from vlmft.provenance import write_decided
    from vlmft.training import checkpoints
    from vlmft.training.prepare import decisions_of

    config = composed(*SMALL, "method=full")
    first = decisions_of(config, tmp_path, [], None)
    assert first.micro_batch == 4
    config.hardware.micro_batch = 2
    assert decisions_of(config, tmp_path, [], None).micro_batch == 2, (
        "until there is a checkpoint, the last choice counts"
    )
    (tmp_path / "checkpoint-1").mkdir()
    checkpoints.seal(tmp_path / "checkpoint-1", 1)
    config.hardware.micro_batch = 4
    assert decisions_of(config, tmp_path, [], None).micro_batch == 2
    write_decided(tmp_path, first.as_dict() | {"device": "cuda", "bf16": True})
    with pytest.raises(DataError, match=r"started on cuda.*would use cpu.*force=true"):
        decisions_of(config, tmp_path, [], None)


def test_a_skipped_run_is_quick(command: Command, tmp_path: Path) -> None:
    quick = (*SMALL, "method=lora", "eval=none", "method.trainer.max_steps=2")
    assert command(*quick).returncode == 0
    assert_quick(quick, tmp_path, says="nothing to do")
    script = (
        "import os, runpy, sys; sys.argv = sys.argv[1:]\n"
        "sys.path[0] = os.path.dirname(sys.argv[0])\n"  # as `python train.py` has it
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "sys.exit('torch' in sys.modules)"
    )
    light = subprocess.run([sys.executable, "-c", script, str(ROOT / "train.py"), *quick], cwd=tmp_path)
    assert light.returncode == 0


@pytest.mark.slow
def test_a_broken_cell_does_not_stop_a_sweep(command: Command, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "dataset"
    conf.mkdir(parents=True)
    data = conversations(tmp_path / "mine", b"no picture")
    (conf / "broken.yaml").write_text(f"name: broken\nformat: conversations\npath: {data}\n")
    cells = ("dataset=broken,demo_xray,demo_path",)
    small = [argument for argument in SMALL if not argument.startswith("dataset=")]
    done = command("--config-dir", str(conf.parent), "-m", *small, *cells, "method=full")
    assert done.returncode == 1
    runs = {path.name.split("-")[1]: path for path in (tmp_path / "outputs").iterdir() if path.name[0] != "."}
    assert set(runs) == {"broken", "demo_xray", "demo_path"}
    assert [read(runs[n] / "status.json")["state"] for n in ("broken", "demo_xray", "demo_path")] == [
        "failed", "done", "done",
    ]  # fmt: skip
    assert "a.jpg cannot be read" in read(runs["broken"] / "status.json")["error"], "the sweep's report shows it"
    assert "broken" in done.stderr and "a.jpg cannot be read" in done.stderr


@pytest.mark.slow
def test_real_vqa_rad_runs_through(command: Command, tmp_path: Path, real_data: Path) -> None:
    done = command("model=tiny_glm41v", "dataset=vqa_rad", f"dataset.path={real_data / 'vqa_rad'}", "method=full",
                   "method.trainer.max_steps=10", "dataset.validation=0.02", "method.trainer.eval_strategy=steps",
                   "method.trainer.eval_steps=5", "hardware=cpu", "eval.generation.max_new_tokens=8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    records = [json.loads(line) for line in (run / "predictions_vqa_rad.jsonl").read_text().splitlines()]
    assert len({record["id"] for record in records}) == len(records) == 451
    found = read(run / "result.json")["evaluations"]["vqa_rad"]
    metrics = found["scores"]["normalized"]["metrics"]
    assert (metrics["closed_accuracy"]["n"], metrics["open_exact_match"]["n"]) == (272, 179)
    assert found["floor"]["question_only"]["normalized"]["accuracy"] == pytest.approx(0.364, abs=0.01)
    assert found["leakage"]["vqa_rad"]["same_image"] > 190, "the published split is by question"


def test_what_is_wrong_with_a_test_set_shows_before_training(command: Command, tmp_path: Path) -> None:
    data = conversations(tmp_path / "mine", b"no picture")
    conf = tmp_path / "conf" / "dataset"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text(f"name: mine\nformat: conversations\npath: {data}\n")
    done = command("--config-dir", str(conf.parent), *SMALL, "+dataset@eval.sets.mine=mine")
    assert done.returncode == 1 and "a.jpg cannot be read" in done.stderr
    assert not list((tmp_path / "outputs").glob("*/train.log")), "the parent has seen it"
    unchecked = command("--config-dir", str(conf.parent), *SMALL, "+dataset@eval.sets.mine=mine", "check=off")
    assert unchecked.returncode == 1 and "a.jpg cannot be read" in unchecked.stderr
    assert not list(only_run(tmp_path).glob("checkpoint-*")) and "training 1" not in unchecked.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("ablations", "rows"), [("[]", 8), ("[shuffled]", 24)])
def test_debug_mode_is_short(ablations: str, rows: int, command: Command, tmp_path: Path) -> None:
    brief = ("hardware=cpu", "eval.generation.max_new_tokens=8", f"eval.ablations={ablations}")
    done = command("model=tiny_glm41v", "dataset=demo", "debug=true", *brief)
    assert done.returncode == 0, done.stderr
    result = read(only_run(tmp_path) / "result.json")
    assert result["train"]["steps"] == 2
    assert all(found["n"] <= rows for found in result["evaluations"].values())
    assert len(result["evaluations"]) == (3 if rows == 8 else 6)


def test_wandb_without_a_login_is_offline(command: Command, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {"HOME": str(tmp_path)}
    done = command(*SMALL, "method=lora", "eval=none", "tracking.wandb=true", "method.trainer.logging_steps=1", env=env)
    assert done.returncode == 0, done.stderr
    assert list(only_run(tmp_path).glob("wandb/offline-run-*"))

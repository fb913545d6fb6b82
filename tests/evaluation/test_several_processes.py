"""An evaluation by several processes: the files of one process, byte for byte, also after a kill of one of them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.prepared import Prepared
from vlmft.evaluation import generate, results, runs
from vlmft.evaluation.shared_prefix import greedy
from vlmft.schema import Config
from vlmft.status import Status, read

pytestmark = pytest.mark.slow  # starts processes

Composed = Callable[..., Config]
Together = Callable[..., list[tuple[int, str]]]
BRIEF = ("model=tiny_glm41v", "dataset=demo_ct", "task=eval", "hardware=cpu", "eval.max_rows=24",
         "eval.generation.max_new_tokens=6", "eval.generation.batch_size=2")  # fmt: skip

# Read by the worker as it starts, by tests/prepared.py: it is ended by itself in the middle of a batch.
DEADLY = """
import os, signal
from vlmft.evaluation import generate
answer_line, written = generate.answer_line, []
def deadly(*answer):
    written.append(answer)
    if len(written) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer_line(*answer)
generate.answer_line = deadly
"""
WORKER = ("-m", "vlmft.worker")


def write(config: Config, run: Path) -> Path:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return run


@pytest.fixture
def together(prepared: Prepared, tmp_path: Path) -> Together:
    """together(worker, …): exit code and output of each process; one process stays alone."""

    def of(*workers: Sequence[str], deadly: int | None = None) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (tmp_path / "sitecustomize.py").write_text(DEADLY)
        started = []
        for rank, worker in enumerate(workers):
            environment = os.environ | {
                "RANK": str(rank), "WORLD_SIZE": str(len(workers)), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
            }  # fmt: skip
            environment |= {"PYTHONPATH": str(tmp_path)} if rank == deadly else {}
            started.append(prepared.start(worker, tmp_path, environment))
        try:
            said = ["".join(process.communicate(120)) for process in started]
        finally:
            for process in started:
                process.kill()
        return [(process.wait(), text) for process, text in zip(started, said, strict=True)]

    return of


def files(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(run.glob("predictions_*.jsonl"))}


def left(run: Path) -> list[str]:
    return [file.name for file in run.glob(".predictions_*")]


def alone(config: Config, run: Path, wanted: Config | None = None) -> Path:
    runs.Together().evaluate(config, write(config, run), wanted or config, Status(run))
    return run


def test_two_processes_write_what_one_writes(composed: Composed, together: Together, tmp_path: Path) -> None:
    config = composed(*BRIEF, "eval.ablations=[shuffled]", "eval.closed=likelihood")
    one, two = alone(config, tmp_path / "one" / "run"), write(config, tmp_path / "two" / "run")
    command = (*WORKER, str(two))
    (code, said), (other, silent) = together(command, command)
    assert (code, other) == (0, 0), said + silent
    assert files(two) == files(one) and list(files(two)) == ["predictions_demo_ct.jsonl",
                                                             "predictions_demo_ct.shuffled.jsonl"]  # fmt: skip
    assert not left(two)
    assert any("likelihood" in json.loads(line) for line in files(two)["predictions_demo_ct.jsonl"].splitlines())
    assert results.read(two)["evaluations"] == results.read(one)["evaluations"]
    assert "evaluating demo_ct 24/24" in said and "evaluating" not in silent
    status = read(two)
    assert (status["state"], status["attempt"], status["step"], status["total"]) == ("done", 1, 24, 24)


def test_after_a_kill_of_one_of_two_a_single_process_answers_the_rest(
    composed: Composed, together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*BRIEF)
    one, run = alone(config, tmp_path / "one" / "run"), write(config, tmp_path / "two" / "run")
    (code, said), (killed, _) = together(*[(*WORKER, str(run))] * 2, deadly=1)
    assert killed == -9 and code == 1, said
    assert not files(run) and len(left(run)) == 2
    kept = sum(file.read_text().count("\n") for file in run.glob(".predictions_*"))
    assert 4 <= kept < 24
    answered: list[int] = []

    def counted(model: Any, encoder: Any, packs: Any, limit: int) -> Any:
        answered.append(sum(len(pack.rows) for pack in packs))
        return greedy(model, encoder, packs, limit)

    monkeypatch.setattr(generate.shared_prefix, "greedy", counted)
    runs.Together().evaluate(config, run, config, Status(run))
    assert files(run) == files(one) and not left(run)
    assert sum(answered) == 24 - kept


def test_several_runs_by_more_processes_than_pictures(composed: Composed, together: Together, tmp_path: Path) -> None:
    """One of the runs was begun by a single process."""
    config = composed(*BRIEF, "eval=none")
    wanted = composed(*BRIEF, "eval.split=train", "eval.max_rows=7", "eval.generation.batch_size=32")
    runs = [write(replace(config, seed=seed), tmp_path / "several" / name) for seed, name in enumerate("ab")]
    once = [alone(config, tmp_path / "once" / name, wanted) for name in "ab"]
    assert len({tuple(json.loads(line)["images"]) for line in (*files(once[0]).values(),)[0].splitlines()}) <= 3
    begun = once[1] / "predictions_demo_ct.train.jsonl"
    generation = json.loads(begun.read_text().splitlines()[0])["generation"]
    (runs[1] / f".{begun.stem}.{generation}.jsonl").write_text("\n".join(begun.read_text().split("\n")[2:4]) + "\n")
    request = tmp_path / "wanted.yaml"
    request.write_text(OmegaConf.to_yaml(OmegaConf.structured(wanted)))
    ended = together(*[(*WORKER, "--evaluation", str(request), *map(str, runs))] * 3)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    for run, by_one in zip(runs, once, strict=True):
        assert files(run) == files(by_one) and list(files(run)) == ["predictions_demo_ct.train.jsonl"]
        assert not left(run) and read(run)["state"] == "done"

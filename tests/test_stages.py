"""Stages: runs in turn, each from the weights of the one before."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.earlier_runs import SHORT, Command, Composed, adapter, write
from vlmft import sweep
from vlmft.data import leakage
from vlmft.data.samples.flare25 import write_flare25
from vlmft.errors import ConfigError
from vlmft.evaluation.evaluate import TRAINED_ON
from vlmft.files import write_json
from vlmft.identity import run_name
from vlmft.training import init_from


def test_stages_are_runs_in_the_order_they_are_named(composed: Composed) -> None:
    config = composed(*SHORT, "+dataset@stages.second=demo_ct", "+dataset@stages.first=demo", "debug=true")
    found = init_from.stages(config)
    assert [(name, one.dataset.name, one.stages) for name, one in found.items()] == [
        ("second", "demo_ct", {}), ("first", "demo", {}),
    ]  # fmt: skip
    alone = composed(*SHORT, "dataset=demo_ct", "debug=true")
    assert run_name(found["second"]) == run_name(alone) and init_from.stages(alone) == {"": alone}
    with pytest.raises(ConfigError, match=r"stages and dataset=demo: the stages second are what is trained on"):
        composed(*SHORT, "+dataset@stages.second=demo_ct", "dataset=demo")
    with pytest.raises(ConfigError, match=r"stages\.a: dataset\.language belongs to one set"):
        composed(*SHORT, "+dataset@stages.a=demo", "stages.a.language=en")


def test_a_plan_has_every_stage_and_learns_where_it_is(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_sweep import node

    stages = ("+dataset@stages.b=demo_xray", "+dataset@stages.a=demo_ct", f"paths.outputs={tmp_path / 'o'}")
    cfg = node(*SHORT, *stages, "hydra.mode=RUN")
    (first, second) = sweep._planned(3, ["x"], cfg)
    assert (first["number"], first["stage"], first["config"]["dataset"]["name"]) == (3, "b", "demo_xray")
    assert first["folder"].startswith(str(tmp_path / "o" / "tiny_glm41v-demo_xray-lora-s0-"))
    assert (second["stage"], second["folder"], second["error"]) == ("a", None, None)
    monkeypatch.setattr(sweep, "this_job", lambda: (tmp_path, 3))
    write_json(tmp_path / "plan.json", {"jobs": [{"number": 1, "folder": "other"}, first, second]})
    done = write(composed(*SHORT, "dataset=demo_xray"), Path(first["folder"]))
    adapter(done / "final", composed(*SHORT).model.path)
    (_, known) = sweep._planned(3, ["x"], cfg)
    assert known["folder"].startswith(str(tmp_path / "o" / "tiny_glm41v-demo_ct-lora-s0-"))
    config = composed(*SHORT, "dataset=demo_ct", f"init_from={done}", stages[-1])
    sweep.found(Path(known["folder"]), config, "a")
    folders = [job["folder"] for job in json.loads((tmp_path / "plan.json").read_text())["jobs"]]
    assert folders == ["other", first["folder"], known["folder"]]


def test_the_curriculum_of_flare25(composed: Composed, tmp_path: Path) -> None:
    stages = composed("experiment=flare25_curriculum").stages
    starters, broader = (set(stages[name].include) for name in ("starters", "broader"))
    assert (len(starters), len(broader), stages["all"].include) == (5, 15, []) and starters < broader


@pytest.mark.slow
def test_the_curriculum_by_command(command: Command, tmp_path: Path) -> None:
    """With drawn collections in the place of the published ones; the second time there is nothing to do."""
    write_flare25(tmp_path / "flare", 8)
    small = (
        "experiment=flare25_curriculum", "model=tiny_qwen3vl", f"paths.flare25={tmp_path / 'flare'}", "hardware=cpu",
        "stages.broader.include=[retino,BUSI-det,neojaundice,boneresorption,bone_marrow,periapical]",
        "method.batch_size=16", "method.trainer.max_steps=2", "eval.max_rows=8", "eval.generation.max_new_tokens=8",
        "method.max_row_tokens=2048",
    )  # fmt: skip
    done = command(*small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage     2 of 3: broader" in done.stdout and "4 runs, 4 cells: 4 done" in done.stdout
    plan = json.loads((tmp_path / "multirun_reports" / "flare25_curriculum" / "plan.json").read_text())
    runs = [tmp_path / job["folder"] for job in plan["jobs"]]
    assert [run.name.split("-")[1] for run in runs] == ["flare25_starters", "flare25_broader", "flare25_all"]
    for before, run in pairwise(runs):
        assert json.loads((run / "provenance.json").read_text())["init_from"]["run"] == before.name
    seen = [{entry["set"] for entry in leakage.read(run / TRAINED_ON) or []} for run in runs]
    assert [len(sets) for sets in seen] == [1, 2, 3]
    assert "flare25_broader" in (tmp_path / "multirun_reports" / "flare25_curriculum" / "report.md").read_text()
    again = command(*small)
    assert again.returncode == 0 and again.stdout.count("nothing to do") >= 4 and "training 1" not in again.stdout
